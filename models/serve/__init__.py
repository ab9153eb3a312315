"""Serving: a published version answers for users, encoded once, and candidates, scored many times.

``version`` opens what training published; ``versions`` keeps the newest ones and swaps them;
``request`` is what may be asked; ``users`` keeps encoded histories; ``batcher`` gathers concurrent
requests; ``service`` joins these and needs torch alone; ``http`` and ``server`` put it on a port
and need the extra ``serve``.
"""
