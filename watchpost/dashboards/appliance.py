"""Appliance: whether Watchpost itself is well, from the Collector's doors to the stores' disks."""

from __future__ import annotations

from watchpost.dashboards import look
from watchpost.dashboards.look import Column, Page, runbook, to
from watchpost.dashboards.names import APPLIANCE, COMPONENTS, FILL_STEPS, FIRING, START, UP

ACCEPTED = "job_instance_receiver_signal:otelcol_receiver_accepted_items:rate5m"
REFUSED = "job_instance_receiver_signal:otelcol_receiver_refused_items:rate5m"
SENT = "job_instance_exporter_signal:otelcol_exporter_sent_items:rate5m"
GIVEN_UP = "job_instance_exporter_signal:otelcol_exporter_send_failed_items:rate5m"
NO_PLACE = "job_instance_exporter_signal:otelcol_exporter_enqueue_failed_items:rate5m"
QUEUE = "job_instance_exporter:otelcol_exporter_queue:ratio"
ON = 'instance=~"$host"'


def page() -> Page:
    """Return the dashboard."""
    return Page(
        uid=APPLIANCE,
        title="Appliance",
        question="Is Watchpost itself well: does it take, keep and answer everything, and will its disk, memory and certificates last?",
        span="3h",
        variables=[look.prom_variable("host", "Host", "Hosts to look at", "node_uname_info", "instance", every=True)],
        rows=[
            (
                "Services",
                [
                    look.number(
                        "Components",
                        "Down when systemd does not run it, or it does not answer Prometheus.",
                        look.prom_now(COMPONENTS, "{{component}}"),
                        unit="none",
                        steps=[("red", None), ("green", 1)],
                        words=UP,
                        empty="nothing reports",
                        links=[runbook("ServiceNotRunning"), runbook("TargetDown")],
                        size=(16, 5),
                    ),
                    look.number(
                        "Restarts",
                        "How often systemd had to start a service of Watchpost's again, in this time.",
                        look.prom_now(
                            f'sum(increase(node_systemd_service_restart_total{{{ON}, name=~"watchpost-.+"}}[$__range]))'
                        ),
                        unit="none",
                        steps=[("green", None), ("orange", 1), ("red", 4)],
                        decimals=0,
                        links=[runbook("ServiceRestarting")],
                        size=(4, 5),
                    ),
                    look.number(
                        "Alerts that fire",
                        "How many call for somebody.",
                        look.prom_now(f"count({FIRING}) or vector(0)"),
                        unit="none",
                        steps=[("green", None), ("red", 1)],
                        links=[to("Which ones", START)],
                        size=(4, 5),
                    ),
                    look.lines(
                        "Memory",
                        "Of each service, as the kernel counts it.",
                        look.prom(f"job_instance:process_resident_memory_bytes:max{{{ON}}}", "{{job}}"),
                        unit="bytes",
                        stacked=True,
                        links=[runbook("HostMemoryLow")],
                        size=(8, 8),
                    ),
                    look.lines(
                        "Processor",
                        "1 is one processor in full.",
                        look.prom(f"sum by (job) (job_instance:process_cpu_seconds:rate5m{{{ON}}})", "{{job}}"),
                        unit="none",
                        stacked=True,
                        size=(8, 8),
                    ),
                    look.lines(
                        "Memory limits",
                        "How much of its own limit each program uses. Close to it, it only collects garbage.",
                        look.prom(f"job_instance:go_memory:ratio{{{ON}}}", "{{job}}"),
                        look.prom(f"job_instance:otelcol_process_heap:ratio{{{ON}}}", "{{job}}"),
                        unit="percentunit",
                        steps=FILL_STEPS,
                        links=[runbook("CollectorMemoryNearLimit"), runbook("StoreMemoryNearLimit")],
                        size=(8, 8),
                    ),
                ],
            ),
            (
                "Collector",
                [
                    look.lines(
                        "Taken in a second",
                        "Spans, log records and metric points, by the door that they came through.",
                        look.prom(f"sum by (signal, receiver) ({ACCEPTED})", "{{signal}} by {{receiver}}"),
                        unit="cps",
                        links=[runbook("CollectorSilent")],
                        size=(8, 8),
                    ),
                    look.lines(
                        "Delivered a second",
                        "What the stores have taken.",
                        look.prom(f"sum by (signal, exporter) ({SENT})", "{{signal}} to {{exporter}}"),
                        unit="cps",
                        links=[runbook("CollectorExporterFailing")],
                        size=(8, 8),
                    ),
                    look.lines(
                        "Refused, or lost",
                        "Refused: senders come again. Given up: a store refused it for good. No place: the queue was full.",
                        look.prom(
                            f"sum by (signal) ({REFUSED}) > 0 or sum by (signal) (0 * {ACCEPTED})", "{{signal}} refused"
                        ),
                        look.prom(
                            f"sum by (signal) ({GIVEN_UP}) > 0 or sum by (signal) (0 * {SENT})", "{{signal}} given up"
                        ),
                        look.prom(
                            f"sum by (signal) ({NO_PLACE}) > 0 or sum by (signal) (0 * {SENT})", "{{signal}} no place"
                        ),
                        unit="cps",
                        steps=[("transparent", None), ("red", 0.001)],
                        links=[runbook("CollectorRefusing"), runbook("CollectorDropping")],
                        size=(8, 8),
                    ),
                    look.ranking(
                        "Queues",
                        "How full the queue on disk is. It fills while a store is away; when it is full, senders wait.",
                        look.prom_now(f"max by (exporter, instance) ({QUEUE})", "{{exporter}}"),
                        unit="percentunit",
                        steps=FILL_STEPS,
                        maximum=1,
                        links=[runbook("CollectorQueueFilling"), runbook("CollectorQueueFull")],
                        size=(8, 7),
                    ),
                    look.lines(
                        "Waiting in the queues",
                        "Bytes on disk that are not delivered yet.",
                        look.prom("max by (exporter, instance) (otelcol_exporter_queue_size)", "{{exporter}}"),
                        unit="bytes",
                        links=[runbook("CollectorQueueFullSoon")],
                        size=(8, 7),
                    ),
                    look.lines(
                        "Share of the traces that is kept",
                        "With sampling. Without it every trace is kept, and this is empty.",
                        look.prom("watchpost:traces_kept:ratio_rate5m", "kept"),
                        unit="percentunit",
                        maximum=1,
                        empty="no sampling: all are kept",
                        size=(8, 7),
                    ),
                ],
            ),
            (
                "Stores",
                [
                    look.lines(
                        "Received a second",
                        "Spans, log lines and samples.",
                        look.prom(f"job_instance:store_received_items:rate5m{{{ON}}}", "{{job}}"),
                        unit="cps",
                        links=[runbook("StoreDiscarding")],
                        size=(8, 7),
                    ),
                    look.lines(
                        "Taking in takes",
                        "99 of 100 requests of the Collector are taken faster.",
                        look.prom(f"job_instance:store_ingest_duration_seconds:p99_5m{{{ON}}}", "{{job}}"),
                        unit="s",
                        links=[runbook("StoreIngestFailing")],
                        size=(8, 7),
                    ),
                    look.lines(
                        "Series and streams",
                        "What memory and speed depend on: active series in Prometheus, streams in Loki.",
                        look.prom(f"prometheus_tsdb_head_series{{{ON}}}", "series"),
                        look.prom(f"sum by (instance) (loki_ingester_memory_streams{{{ON}}})", "streams"),
                        unit="short",
                        size=(8, 7),
                    ),
                ],
            ),
            (
                "Disk and retention",
                [
                    look.ranking(
                        "Disk",
                        "How full it is. With a full disk queues refuse and stores take nothing more.",
                        look.prom_now(
                            f"max by (instance, mountpoint) (instance_mountpoint:node_filesystem_used:ratio{{{ON}}})",
                            "{{instance}} {{mountpoint}}",
                        ),
                        unit="percentunit",
                        steps=FILL_STEPS,
                        maximum=1,
                        links=[runbook("DiskFilling"), runbook("DiskAlmostFull"), runbook("StoreStoppedByDiskGuard")],
                        size=(8, 7),
                    ),
                    look.ranking(
                        "Used of each store's budget",
                        "What exceeds it is deleted, oldest first (group_vars/all/retention.yml).",
                        look.prom_now(f"instance_store:watchpost_retention_used:ratio{{{ON}}}", "{{store}}"),
                        unit="percentunit",
                        steps=[("green", None), ("orange", 1), ("red", 1.1)],
                        maximum=1.2,
                        links=[runbook("RetentionOverBudget")],
                        size=(8, 7),
                    ),
                    look.listing(
                        "How long data are kept",
                        "In effect, and as wanted: they differ when the disk budget is too small for the wanted time.",
                        look.prom_table(f"watchpost_retention_seconds{{{ON}}}"),
                        look.prom_table(f"watchpost_retention_wanted_seconds{{{ON}}}"),
                        columns=[
                            Column("store", "Store"),
                            Column("Value #A", "Kept", "s"),
                            Column("Value #B", "Wanted", "s"),
                        ],
                        sort="Store",
                        size=(8, 7),
                    ),
                ],
            ),
            (
                "Host",
                [
                    look.lines(
                        "Processor",
                        "Share in use.",
                        look.prom(f"instance:node_cpu_used:ratio_rate5m{{{ON}}}", "{{instance}}"),
                        unit="percentunit",
                        maximum=1,
                        steps=FILL_STEPS,
                        size=(6, 7),
                    ),
                    look.lines(
                        "Memory",
                        "Share in use.",
                        look.prom(f"instance:node_memory_used:ratio{{{ON}}}", "{{instance}}"),
                        unit="percentunit",
                        maximum=1,
                        steps=FILL_STEPS,
                        size=(6, 7),
                    ),
                    look.lines(
                        "Network",
                        "Bytes a second, without loopback.",
                        look.prom(
                            f'sum by (instance) (rate(node_network_receive_bytes_total{{{ON}, device!="lo"}}[$__rate_interval]))',
                            "{{instance}} in",
                        ),
                        look.prom(
                            f'sum by (instance) (rate(node_network_transmit_bytes_total{{{ON}, device!="lo"}}[$__rate_interval]))',
                            "{{instance}} out",
                        ),
                        unit="Bps",
                        size=(6, 7),
                    ),
                    look.lines(
                        "Load",
                        "Processes that run or want to. More than there are processors: they wait.",
                        look.prom(f"node_load1{{{ON}}}", "{{instance}}"),
                        unit="none",
                        size=(6, 7),
                    ),
                ],
            ),
            (
                "Certificates",
                [
                    look.ranking(
                        "Days left",
                        "A run of site.yml renews what has less than 30.",
                        look.prom_now(
                            "sort(host_identity:watchpost_certificate_left:days < 3000)", "{{host}} {{identity}}"
                        ),
                        unit="d",
                        steps=[("red", None), ("orange", 14), ("green", 30)],
                        maximum=90,
                        links=[runbook("CertificateExpiring"), runbook("CertificateExpiresSoon")],
                        size=(24, 9),
                    ),
                ],
            ),
        ],
    )
