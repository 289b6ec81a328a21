"""The projects that are measured: the shipped queries/, less some of their INSERTs.

So a stage runs the very text that users run, and follows when it changes. A view that feeds no INSERT is not run.
"""
import re

from servers import ROOT

INSERT = re.compile(r"^INSERT INTO (\S+).*?;[ \t]*$", re.MULTILINE | re.DOTALL)
HOP = "HOP(valid_events, \"timestamp\", INTERVAL '5 seconds', INTERVAL '1 minute')"
TUMBLE = "TUMBLE(valid_events, \"timestamp\", INTERVAL '1 minute')"
# Another text for one of the shipped project, and how it is told.
VARIANTS = {
    # The table that has its own transaction, delivered out of an outbox.
    "outbox": ("'transaction' 'own',", "'transaction' 'own', 'delivery' 'outbox',"),
    # Merging as often as it could be wanted.
    "delta": (
        "STORED AS PARQUET LOCATION '${LAKE_URL:-lake}/user_events'\nPARTITIONED BY (event_date DATE);",
        "STORED AS DELTA LOCATION '${LAKE_URL:-lake}/user_events'\nPARTITIONED BY (event_date DATE)\n"
        "OPTIONS ('optimize.interval' '1 second');",
    ),
}
ALL = (
    "kafka.dead_letter_topic", "db.user_events", "lake.user_events", "db.user_activity_summary", "db.anomalous_events",
    "kafka.anomaly_alerts",
)
# Off where there is no ES_URL.
ELASTICSEARCH = ("es.anomalies", "es.summaries")
# Off where there is no MONITORING_URL.
MONITORING = ("monitoring.hourly_metrics", "monitoring.data_quality_checks", "monitoring.anomaly_detection_results")


def build(folder, keep=ALL, tumble=False, more=(), variant=None):
    """Writes a project into `folder`: the INSERTs into the tables `keep`, the 1-minute windows sliding or (`tumble`) not,
    the files of the folders `more`; as shipped, or in one of VARIANTS."""
    folder.mkdir(parents=True)
    found, slides, places = set(), 0, dict.fromkeys(VARIANTS, 0)

    def kept(insert):
        found.add(insert[1])
        return insert[0] if insert[1] in keep else f"-- left out: INSERT INTO {insert[1]}"

    for file in sorted((ROOT / "queries").glob("*.sql")):
        text = INSERT.sub(kept, file.read_text())
        slides += text.count(HOP)
        for name, (shipped, other) in VARIANTS.items():
            places[name] += text.count(shipped)
            text = text.replace(shipped, other) if name == variant else text
        (folder / file.name).write_text(text.replace(HOP, TUMBLE) if tumble else text)
    if found != {*ALL, *ELASTICSEARCH, *MONITORING} or slides != 1 or set(places.values()) != {1}:
        raise SystemExit("error: queries/ has changed: benches/project.py does not know its INSERTs, its HOP or its VARIANTS any more")
    for other in more:
        for file in other.glob("*.sql"):
            (folder / file.name).write_text(file.read_text())
    return folder
