"""Where the public traces are: their publishers' addresses, sizes and checksums.

Addresses, sizes and checksums are those the publishers state (Philly: the Git LFS pointer beside
its archive; PAI: the checksum list of its README). Where a publisher states none, ``sha256`` is
empty or, with ``sha256_by`` saying so, the one of the copy our loaders are tested on; a publisher
may have changed its file since, so such a mismatch is said and the file kept. Read in November
2026; HEAD in an address is GitHub's name for the default branch. We bundle no data: licences
differ, and several publishers state none.

Left out: Acme's 80 GB of telemetry, openb's 24 resampled pod lists but one, gpu-v2026 (no
submission times) and Taobao (behind a login: https://tianchi.aliyun.com/dataset/649).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from traces.errors import UsageError, did_you_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One file at its publisher's: ``size`` in bytes; ``sha256`` of the bytes as served."""

    url: str
    name: str
    size: int | None = None
    sha256: str = ""
    sha256_by: Literal["publisher", "our copy", ""] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """A trace at its publisher's: title, licence, files, and what to know before loading it."""

    title: str
    licence: str
    files: tuple[RemoteFile, ...]
    note: str = ""


def _raw(repository: str, path: str, name: str = "", *, sha256: str = "") -> RemoteFile:
    return RemoteFile(
        url=f"https://raw.githubusercontent.com/{repository}/{path}",
        name=name or path.rsplit("/", 1)[-1],
        sha256=sha256,
        sha256_by="our copy" if sha256 else "",
    )


_PAI = "https://aliopentrace.oss-cn-beijing.aliyuncs.com/v2020GPUTraces"
_PAI_SHA256 = {
    "pai_job_table": "5aad7f7caac501136d14ed6a48e40546f825d7b0617a3a4f337e2348fe0a6cb0",
    "pai_task_table": "cd1d6dc3215d2a8607ccf6b6dd952b5db776df86926c73259fea7c1499ac40e5",
    "pai_instance_table": "1bf1e423a7ce3f8d086699801c362fd56a7182abdb234139e5ebbed97995ca06",
    "pai_machine_spec": "cc0d38a4045af1b1af8179de8b1b54b1ddd995e6160d6d061a6b1000f1276c2d",
    "pai_group_tag_table": "722fef30b7fb7aa50dabd79155614b5423a9d65cf45a9b26c590d57725423a14",
}
_ALIBABA = "alibaba/clusterdata/HEAD"
_ALIBABA_LICENCE = "no licence file; the README allows any use for research or study"
_GAVEL = "stanford-futuredata/gavel/HEAD/scheduler"

PUBLICATIONS: dict[str, Publication] = {
    "philly-log": Publication(
        title="Microsoft Philly 2017, the original archive (1.06 GB)",
        licence="CC BY 4.0",
        files=(
            RemoteFile(
                url="https://github.com/msr-fiddle/philly-traces/raw/HEAD/trace-data.tar.gz",
                name="trace-data.tar.gz",
                size=1_055_988_361,
                sha256="2037ccf63a725a02be718b0e1aeee6142c90b7f62d0d849295120e9f6ba13d2c",
                sha256_by="publisher",
            ),
        ),
        note="unpack it; load its cluster_job_log. GitHub has answered 403 when its LFS quota was "
        "used up: try again later",
    ),
    "philly": Publication(
        title="Microsoft Philly 2017, flat CSV of the Sia artifact",
        licence="no licence file; its source is CC BY 4.0",
        files=(
            _raw(
                "siasosp23/artifacts/HEAD",
                "sia-simulator/traces/philly.csv",
                sha256="ebffb3dd1589bdf4e7bcd74496201c5ded1d557d498ee14f560463f37ec353da",
            ),
        ),
    ),
    "helios": Publication(
        title="SenseTime Helios 2020, four clusters (36 MB)",
        licence="CC BY 4.0",
        files=(
            RemoteFile(
                url="https://github.com/S-Lab-System-Group/HeliosData/raw/HEAD/data.zip",
                name="data.zip",
            ),
        ),
        note="unpack it; load <cluster>/cluster_log.csv",
    ),
    "acme": Publication(
        title="Shanghai AI Lab Acme 2023, Seren and Kalos job traces",
        licence="CC BY 4.0",
        files=(
            _raw("InternLM/AcmeTrace/HEAD", "data/job_trace/trace_seren.csv"),
            _raw("InternLM/AcmeTrace/HEAD", "data/job_trace/trace_kalos.csv"),
        ),
    ),
    "pai": Publication(
        title="Alibaba PAI 2020: job, task, instance, machine and tag tables (0.8 GB)",
        licence="CC BY 4.0",
        files=tuple(
            RemoteFile(
                url=f"{_PAI}/{table}.tar.gz",
                name=f"{table}.tar.gz",
                sha256=sha256,
                sha256_by="publisher",
            )
            for table, sha256 in _PAI_SHA256.items()
        ),
        note="unpack all of them into one directory and load the directory",
    ),
    "openb": Publication(
        title="Alibaba openb 2023: pods, pods with GPU types, nodes",
        licence=_ALIBABA_LICENCE,
        files=(
            _raw(
                _ALIBABA,
                "cluster-trace-gpu-v2023/csv/openb_pod_list_default.csv",
                sha256="1ee7ed79c27a3b0861cda8ddba86a004c6aba904caafa329a76ae93ca63834a8",
            ),
            _raw(
                _ALIBABA,
                "cluster-trace-gpu-v2023/csv/openb_pod_list_gpuspec33.csv",
                sha256="eca4f746db1e5b25864ad021b55ece3943e101a3ebd4574d09dcb95c46117652",
            ),
            _raw(
                _ALIBABA,
                "cluster-trace-gpu-v2023/csv/openb_node_list_gpu_node.csv",
                sha256="2beca64b4d3dfa342036a34b56a495c6cef9225db836c81f541282cb1df320b5",
            ),
        ),
    ),
    "dlrm": Publication(
        title="Alibaba DLRM serving 2025",
        licence=_ALIBABA_LICENCE,
        files=(
            _raw(
                _ALIBABA,
                "cluster-trace-gpu-v2025/disaggregated_DLRM_trace.csv",
                sha256="fb17bc4b3f412d5280f70f04a1bdf2adfc4429d1e61237a5b106e86206414295",
            ),
        ),
    ),
    "spot-gpu": Publication(
        title="Alibaba spot-GPU 2026: nodes",
        licence=_ALIBABA_LICENCE,
        files=(
            _raw(
                _ALIBABA,
                "cluster-trace-v2026-spot-gpu/node_info_df.csv",
                sha256="1aba161961a5a4a1a61aa581383c5e5abe3400b59f8597ba8c4eef7597bc9d18",
            ),
        ),
        note="the README gives no address for its job table, job_info_df.csv",
    ),
    "gavel": Publication(
        title="Gavel: three traces of its physical cluster, and measured throughputs",
        licence="MIT",
        files=(
            _raw(
                _GAVEL,
                "traces/physical_cluster/artifact_evaluation.trace",
                sha256="aa267474f78f61ef65ec26585957e7737e0f2f8cba7e5425d7e52e26146d15b6",
            ),
            _raw(
                _GAVEL,
                "traces/physical_cluster/medium_test.trace",
                sha256="161ebef0f499a83bb00899a30f1701b533ddb47fd29cbd0ff1058b6c46daa5ff",
            ),
            _raw(
                _GAVEL,
                "traces/physical_cluster/small_test.trace",
                sha256="1a216a80d1f40bc2b88a3edb5f14ff687560024c085a6392613618a47cbe54dc",
            ),
            _raw(_GAVEL, "simulation_throughputs.json"),
        ),
        note="run times need the throughputs: --set throughputs=simulation_throughputs.json",
    ),
    "tiresias": Publication(
        title="Tiresias: 60 jobs",
        licence="Apache-2.0",
        files=(
            _raw(
                "SymbioticLab/Tiresias/HEAD",
                "simulator/60_job.csv",
                sha256="17575949a6e570960db42bc5576739de9c334ed4c664859841c4f01ede38bd1b",
            ),
        ),
    ),
    "easyscale": Publication(
        title="EasyScale SC'23 artifact: 68 jobs",
        licence="none found",
        files=(
            _raw(
                "sUntvoOk/EasyScale_info_for_SC23/HEAD",
                "simulator/workloads/test.csv",
                "easyscale_workload.csv",
                sha256="88ed28df54713926aa7b4aeba923bb4e777cb47d055914250212dae8967fc656",
            ),
        ),
    ),
}


def find_publication(name: str) -> Publication:
    """Return the publication of that name; raises :class:`UsageError` with the nearest names."""
    if name not in PUBLICATIONS:
        raise UsageError(
            f"no trace to fetch is called {name!r}; {did_you_mean(name, PUBLICATIONS)}"
        )
    return PUBLICATIONS[name]
