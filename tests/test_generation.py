"""What is asked of a generation on disk, as far as no host is needed; the rest is in molecule/service."""

import importlib.util

import pytest

from watchpost.project import PROJECT

spec = importlib.util.spec_from_file_location(
    "watchpost_generation", PROJECT / "roles/service/module_utils/watchpost_generation.py"
)
generation = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generation)


@pytest.mark.parametrize(
    ("line", "path"),
    [
        (
            "7f1a2b000000-7f1a2b0a0000 r-xp 00025000 fe:01 131 /usr/lib/x86_64-linux-gnu/libssl.so.3 (deleted)",
            "/usr/lib/x86_64-linux-gnu/libssl.so.3",
        ),
        (
            "55d0a0000000-55d0a0100000 r-xp 00000000 00:2f 9                    /usr/sbin/nginx (deleted)",
            "/usr/sbin/nginx",
        ),
        ("00400000-01a00000 r-xp 00000000 fe:01 7 /opt/watchpost/a/1-2/bin/a (deleted)", "/opt/watchpost/a/1-2/bin/a"),
        ("7f1a2b000000-7f1a2b0a0000 r-xp 00025000 fe:01 131 /usr/lib/x86_64-linux-gnu/libssl.so.3", None),
        ("7f1a2b000000-7f1a2b0a0000 r--p 00000000 fe:01 131 /usr/share/zoneinfo/UTC (deleted)", None),  # data
        ("7f1a2b000000-7f1a2b008000 rw-s 00000000 fe:01 77 /var/lib/watchpost/grafana/grafana.db-shm (deleted)", None),
        ("7f1a2b000000-7f1a2b001000 rw-s 00000000 00:01 5 /dev/zero (deleted)", None),
        ("7f1a2b000000-7f1a2b001000 r-xs 00000000 00:01 2049 /memfd:libffi (deleted)", None),
        ("7f1a2b000000-7f1a2b001000 r-xp 00000000 fe:01 9 /tmp/ffiXk2 (deleted)", None),
        ("7f1a2b000000-7f1a2b001000 rwxp 00000000 00:00 0 ", None),
    ],
)
def test_only_code_that_a_package_or_a_deploy_put_there_counts_as_replaced(line, path):
    around = f"7f0-7f1 r--p 0 0:0 0 [vvar]\n{line}\n7f2-7f3 rw-p 0 0:0 0 [stack]\n"
    assert generation.REPLACED.findall(around) == ([path] if path else [])
