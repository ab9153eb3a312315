"""Inter-job policies: which jobs run, on how many GPUs of which type."""
