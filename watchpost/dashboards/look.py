"""The look that all dashboards share: one function a kind of panel, and a grid that places them by itself.

Each panel function asks for what no panel may lack: a title, what it tells a person (`description`), the unit of its
values (an id of Grafana's, such as `s`, `reqps`, `percentunit`) and its queries. Widths and heights are in cells of
Grafana's grid, which is 24 cells wide; a cell is 30 pixels high.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import (
    bargauge,
    common,
    dashboardlist,
    loki,
    nodegraph,
    prometheus,
    stat,
    table,
    tempo,
    timeseries,
)
from grafana_foundation_sdk.models import logs as logs_model
from grafana_foundation_sdk.models.dashboard import (
    AnnotationContainer,
    AnnotationQuery,
    Dashboard,
    DashboardCursorSync,
    DashboardDashboardTemplating,
    DashboardDashboardTime,
    DashboardFieldConfigSourceOverrides,
    DashboardLink,
    DashboardLinkType,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColor,
    FieldColorModeId,
    FieldConfig,
    FieldConfigSource,
    GridPos,
    MatcherConfig,
    Panel,
    RowPanel,
    Threshold,
    ThresholdsConfig,
    ValueMap,
    ValueMappingResult,
    VariableModel,
    VariableOption,
    VariableRefresh,
    VariableSort,
    VariableType,
)

#: All dashboards carry it: by it they find each other.
TAG = "watchpost"
#: The columns of Grafana's grid.
GRID_WIDTH = 24
#: Grafana 11.0's. Later ones bring a dashboard up to their own by themselves; a newer number would keep an older Grafana
#: from knowing what to do with it.
SCHEMA_VERSION = 39

PROMETHEUS = DataSourceRef(type_val="prometheus", uid="prometheus")
LOKI = DataSourceRef(type_val="loki", uid="loki")
TEMPO = DataSourceRef(type_val="tempo", uid="tempo")

Link = DashboardLink
Links = Sequence[Link]
#: Colours from a value on: `[("green", None), ("red", 1)]` is red from 1.
Steps = Sequence[tuple[str, float | None]]


def prom(expr: str, legend: str = "", *, exemplars: bool = False) -> prometheus.Dataquery:
    """Return a PromQL query over the dashboard's time; `exemplars` shows single requests, which lead to their traces."""
    return prometheus.Dataquery(
        expr=expr,
        legend_format=legend or "__auto",
        exemplar=exemplars,
        range_val=True,
        instant=False,
        editor_mode=prometheus.QueryEditorMode.CODE,
        datasource=PROMETHEUS,
    )


def prom_now(expr: str, legend: str = "") -> prometheus.Dataquery:
    """Return a PromQL query at the end of the dashboard's time."""
    return prometheus.Dataquery(
        expr=expr,
        legend_format=legend or "__auto",
        range_val=False,
        instant=True,
        editor_mode=prometheus.QueryEditorMode.CODE,
        datasource=PROMETHEUS,
    )


def prom_table(expr: str) -> prometheus.Dataquery:
    """Return a PromQL query at the end of the dashboard's time, each label a column."""
    query = prom_now(expr)
    query.format_val, query.legend_format = prometheus.PromQueryFormat.TABLE, None
    return query


def loki_lines(expr: str) -> loki.Dataquery:
    """Return a LogQL query for log lines."""
    return loki.Dataquery(expr=expr, query_type="range", max_lines=500, datasource=LOKI)


def loki_metric(expr: str, legend: str = "") -> loki.Dataquery:
    """Return a LogQL query for numbers over the dashboard's time."""
    return loki.Dataquery(expr=expr, legend_format=legend, query_type="range", datasource=LOKI)


def loki_now(expr: str, legend: str = "") -> loki.Dataquery:
    """Return a LogQL query for numbers at the end of the dashboard's time."""
    return loki.Dataquery(expr=expr, legend_format=legend, query_type="instant", datasource=LOKI)


def to(title: str, uid: str, *same: str, **variables: str) -> Link:
    """Return a link to another dashboard, over the same time; `same` names variables that both have, others get a value.

    The address begins with a slash: Grafana puts the path below which it is served in front of it.
    """
    chosen = "".join(
        [*(f"&${{{name}:queryparam}}" for name in same), *(f"&var-{name}={value}" for name, value in variables.items())]
    )
    return DashboardLink(title=title, url=f"/d/{uid}?${{__url_time_range}}{chosen}")


def runbook(alert: str) -> Link:
    """Return a link to an alert's page, in a window of its own: the gateway shows it, outside of Grafana.

    The address is relative, as the appliance's own is not known here; browsers leave out the steps above the root.
    """
    url = f"../../../../runbooks/{alert}.md"
    return DashboardLink(title=f"Runbook {alert}", url=url, target_blank=True)


def _steps(steps: Steps) -> ThresholdsConfig:
    return ThresholdsConfig(steps=[Threshold(color=color, value=value) for color, value in steps])


def _panel(  # what every kind of panel has
    kind: str,
    title: str,
    description: str,
    queries: Sequence[Dataquery],
    *,
    size: tuple[int, int],
    options: object,
    defaults: FieldConfig | None = None,
    overrides: list[DashboardFieldConfigSourceOverrides] | None = None,
    transformations: list[DataTransformerConfig] | None = None,
) -> Panel:
    for name, query in zip("ABCDEFGHIJ", queries, strict=False):
        query.ref_id = name  # type: ignore[attr-defined]  # every kind of query has one, their base class does not say so
    return Panel(
        type_val=kind,
        title=title,
        description=description,
        targets=list(queries),
        datasource=queries[0].datasource if queries else None,  # type: ignore[attr-defined]  # likewise
        grid_pos=GridPos(w=size[0], h=size[1]),
        transparent=None,
        options=options,
        field_config=FieldConfigSource(defaults=defaults or FieldConfig(), overrides=overrides or []),
        transformations=transformations,
    )


def _last_value() -> common.ReduceDataOptions:
    return common.ReduceDataOptions(calcs=["lastNotNull"], fields="", values=False)


def number(
    title: str,
    description: str,
    *queries: Dataquery,
    unit: str,
    steps: Steps,
    links: Links = (),
    words: dict[str, tuple[str, str]] | None = None,
    empty: str = "no data",
    decimals: int | None = None,
    size: tuple[int, int] = (6, 4),
) -> Panel:
    """Return a panel of large numbers, one a series, coloured by what they mean.

    `words` are shown in the place of single values: `{"0": ("down", "red")}`; `empty` in the place of no answer.
    """
    mappings = [
        ValueMap(options={value: ValueMappingResult(text=text, color=color)})
        for value, (text, color) in (words or {}).items()
    ]
    several = bool(queries) and getattr(queries[0], "legend_format", "__auto") not in ("__auto", "")
    return _panel(
        "stat",
        title,
        description,
        queries,
        size=size,
        options=stat.Options(
            reduce_options=_last_value(),
            color_mode=common.BigValueColorMode.BACKGROUND if words else common.BigValueColorMode.VALUE,
            graph_mode=common.BigValueGraphMode.NONE if words else common.BigValueGraphMode.AREA,
            text_mode=common.BigValueTextMode.VALUE_AND_NAME if several else common.BigValueTextMode.VALUE,
        ),
        defaults=FieldConfig(
            unit=unit,
            thresholds=_steps(steps),
            mappings=list(mappings),
            links=list(links),
            no_value=empty,
            decimals=decimals,
            color=FieldColor(mode=FieldColorModeId.THRESHOLDS),
        ),
    )


def lines(
    title: str,
    description: str,
    *queries: Dataquery,
    unit: str,
    links: Links = (),
    steps: Steps = (),
    stacked: bool = False,
    bars: bool = False,
    minimum: float | None = 0,
    maximum: float | None = None,
    empty: str = "no data",
    colors: dict[str, str] | None = None,
    size: tuple[int, int] = (12, 8),
) -> Panel:
    """Return a panel of values over time. `steps` are drawn as dashed lines; `colors` are those of series, by name."""
    custom = common.GraphFieldConfig(
        draw_style=common.GraphDrawStyle.BARS if bars else common.GraphDrawStyle.LINE,
        line_width=1,
        fill_opacity=60 if bars else 30 if stacked else 8,
        show_points=common.VisibilityMode.NEVER,
        stacking=common.StackingConfig(mode=common.StackingMode.NORMAL if stacked else common.StackingMode.NONE),
        thresholds_style=common.GraphThresholdsStyleConfig(
            mode=common.GraphThresholdsStyleMode.DASHED if steps else common.GraphThresholdsStyleMode.OFF
        ),
    )
    return _panel(
        "timeseries",
        title,
        description,
        queries,
        size=size,
        options=timeseries.Options(
            legend=common.VizLegendOptions(show_legend=True, calcs=[], placement=common.LegendPlacement.BOTTOM),
            tooltip=common.VizTooltipOptions(mode=common.TooltipDisplayMode.MULTI, sort=common.SortOrder.DESCENDING),
        ),
        defaults=FieldConfig(
            unit=unit,
            min_val=minimum,
            max_val=maximum,
            links=list(links),
            no_value=empty,
            custom=custom,
            thresholds=_steps(steps) if steps else None,
            color=FieldColor(mode=FieldColorModeId.PALETTE_CLASSIC_BY_NAME),
        ),
        overrides=[
            DashboardFieldConfigSourceOverrides(
                matcher=MatcherConfig(id_val="byName", options=name),
                properties=[DynamicConfigValue("color", FieldColor(mode=FieldColorModeId.FIXED, fixed_color=color))],
            )
            for name, color in (colors or {}).items()
        ],
    )


def ranking(
    title: str,
    description: str,
    *queries: Dataquery,
    unit: str,
    steps: Steps,
    links: Links = (),
    maximum: float | None = None,
    empty: str = "no data",
    size: tuple[int, int] = (12, 8),
) -> Panel:
    """Return a panel of horizontal bars, one a series, for comparing them now."""
    return _panel(
        "bargauge",
        title,
        description,
        queries,
        size=size,
        options=bargauge.Options(
            display_mode=common.BarGaugeDisplayMode.BASIC,
            orientation=common.VizOrientation.HORIZONTAL,
            reduce_options=_last_value(),
            legend=common.VizLegendOptions(show_legend=False),
        ),
        defaults=FieldConfig(
            unit=unit,
            min_val=0,
            max_val=maximum,
            thresholds=_steps(steps),
            links=list(links),
            no_value=empty,
            color=FieldColor(mode=FieldColorModeId.THRESHOLDS),
        ),
    )


@dataclass(frozen=True)
class Column:
    """A column of a table: the field it comes from (`Value #A`, or a label), its heading and its unit."""

    field: str
    heading: str
    unit: str = "string"
    links: Links = ()
    steps: Steps = ()


def listing(
    title: str,
    description: str,
    *queries: prometheus.Dataquery,
    columns: Sequence[Column],
    sort: str,
    descending: bool = True,
    empty: str = "no data",
    size: tuple[int, int] = (12, 8),
) -> Panel:
    """Return a table: the queries' answers side by side, the named columns alone, largest of `sort` (a heading) first."""
    organized: dict[str, object] = {
        "includeByName": {column.field: True for column in columns},
        "indexByName": {column.field: place for place, column in enumerate(columns)},
        "renameByName": {column.field: column.heading for column in columns},
    }
    overrides = []
    for column in columns:
        properties = [DynamicConfigValue("unit", column.unit)]
        if column.links:
            properties.append(DynamicConfigValue("links", list(column.links)))
        if column.steps:
            properties += [
                DynamicConfigValue("thresholds", _steps(column.steps)),
                DynamicConfigValue("color", FieldColor(mode=FieldColorModeId.THRESHOLDS)),
                DynamicConfigValue("custom.cellOptions", common.TableColorTextCellOptions()),
            ]
        matcher = MatcherConfig(id_val="byName", options=column.heading)
        overrides.append(DashboardFieldConfigSourceOverrides(matcher=matcher, properties=properties))
    return _panel(
        "table",
        title,
        description,
        queries,
        size=size,
        options=table.Options(sort_by=[common.TableSortByFieldState(display_name=sort, desc=descending)]),
        defaults=FieldConfig(no_value=empty),
        overrides=overrides,
        transformations=[
            DataTransformerConfig(id_val="merge", options={}),
            DataTransformerConfig(id_val="organize", options=organized),
        ],
    )


def log_lines(title: str, description: str, query: loki.Dataquery, *, size: tuple[int, int] = (24, 10)) -> Panel:
    """Return a panel of log lines; an opened line shows all its attributes, and its trace id leads to its trace."""
    return _panel(
        "logs",
        title,
        description,
        [query],
        size=size,
        options=logs_model.Options(show_time=True, wrap_log_message=True, enable_log_details=True),
    )


def found_traces(
    title: str, description: str, traceql: str, *, limit: int = 20, size: tuple[int, int] = (24, 9)
) -> Panel:
    """Return a table of the traces that a TraceQL query finds; a trace id opens the trace."""
    query = tempo.TempoQuery(
        query=traceql,
        query_type="traceql",
        limit=limit,
        spss=3,
        table_type=tempo.SearchTableType.TRACES,
        datasource=TEMPO,
    )
    return _panel(
        "table",
        title,
        description,
        [query],
        size=size,
        options=table.Options(),
        defaults=FieldConfig(no_value="none found"),
    )


def service_map(title: str, description: str, *, size: tuple[int, int] = (24, 12)) -> Panel:
    """Return the graph of who calls whom, from the service-graph metrics that Tempo's data source reads."""
    query = tempo.TempoQuery(query_type="serviceMap", datasource=TEMPO)
    return _panel("nodeGraph", title, description, [query], size=size, options=nodegraph.Options())


def dashboards_list(title: str, description: str, *, size: tuple[int, int] = (6, 8)) -> Panel:
    """Return the list of Watchpost's dashboards."""
    options = dashboardlist.Options(
        show_starred=False, show_search=True, show_headings=False, tags=[TAG], keep_time=True, max_items=20
    )
    return _panel("dashlist", title, description, [], size=size, options=options)


def prom_variable(
    name: str, label: str, description: str, metric: str, of: str, *, regex: str = "", every: bool = False
) -> VariableModel:
    """Return a variable with the values of the label `of` on `metric`, in Prometheus. `every`: several, or all of them."""
    query = f"label_values({metric}, {of})"
    return _variable(
        name, label, description, PROMETHEUS, {"query": query, "qryType": 1, "refId": f"variable-{name}"}, regex, every
    )


def loki_variable(
    name: str, label: str, description: str, of: str, *, stream: str = "", every: bool = False
) -> VariableModel:
    """Return a variable with the values of a stream label in Loki."""
    query: dict[str, object] = {"label": of, "refId": f"variable-{name}", "stream": stream, "type": 1}
    return _variable(name, label, description, LOKI, query, "", every)


def _variable(
    name: str, label: str, description: str, source: DataSourceRef, query: dict[str, object], regex: str, every: bool
) -> VariableModel:
    return VariableModel(
        type_val=VariableType.QUERY,
        name=name,
        label=label,
        description=description,
        datasource=source,
        query=query,
        regex=regex,
        refresh=VariableRefresh.ON_TIME_RANGE_CHANGED,
        sort=VariableSort.ALPHABETICAL_ASC,
        multi=every,
        include_all=every,
        # Loki wants one matcher that the empty text does not meet.
        all_value=(".+" if source is LOKI else ".*") if every else None,
        current=VariableOption(text="All", value="$__all") if every else None,
    )


def choice_variable(
    name: str, label: str, description: str, values: Sequence[str], *, every: bool = False
) -> VariableModel:
    """Return a variable with fixed values, of which the first is chosen, or all of them with `every`."""
    options = [VariableOption(selected=not every and value == values[0], text=value, value=value) for value in values]
    chosen = VariableOption(selected=True, text="All", value="$__all") if every else options[0]
    return VariableModel(
        type_val=VariableType.CUSTOM,
        name=name,
        label=label,
        description=description,
        query=",".join(values),
        options=options,
        current=chosen,
        multi=every,
        include_all=every,
        all_value=".*" if every else None,
    )


def text_variable(name: str, label: str, description: str) -> VariableModel:
    """Return a variable that a person types; empty at first."""
    return VariableModel(
        type_val=VariableType.TEXTBOX,
        name=name,
        label=label,
        description=description,
        query="",
        current=VariableOption(text="", value=""),
    )


@dataclass
class Page:
    """A dashboard: rows of panels under headings, placed from left to right."""

    uid: str
    title: str
    question: str  # that it answers; shown beside its title
    rows: Sequence[tuple[str, Sequence[Panel]]]
    variables: Sequence[VariableModel] = ()
    span: str = "1h"  # of time that it shows at first
    annotations: Sequence[AnnotationQuery] = field(default_factory=list)

    def model(self) -> Dashboard:
        """Return it as Grafana's own model, each panel in its place."""
        return Dashboard(
            uid=self.uid,
            title=self.title,
            description=self.question,
            tags=[TAG],
            schema_version=SCHEMA_VERSION,
            editable=False,
            graph_tooltip=DashboardCursorSync.CROSSHAIR,
            time=DashboardDashboardTime(from_val=f"now-{self.span}", to="now"),
            refresh="30s",
            fiscal_year_start_month=None,
            panels=list(self._placed()),
            templating=DashboardDashboardTemplating(list(self.variables)),
            annotations=AnnotationContainer(list(self.annotations)),
            links=[
                DashboardLink(
                    title="Watchpost",
                    type_val=DashboardLinkType.DASHBOARDS,
                    tags=[TAG],
                    as_dropdown=True,
                    keep_time=True,
                    include_vars=True,
                    icon="external link",
                )
            ],
        )

    def _placed(self) -> Iterator[Panel | RowPanel]:
        number, y = 1, 0
        for heading, panels in self.rows:
            yield RowPanel(title=heading, grid_pos=GridPos(x=0, y=y, w=GRID_WIDTH, h=1), id_val=number)
            number, x, y, height = number + 1, 0, y + 1, 0
            for panel in panels:
                place = panel.grid_pos or GridPos()
                if x + place.w > GRID_WIDTH:
                    x, y, height = 0, y + height, 0
                panel.grid_pos = GridPos(x=x, y=y, w=place.w, h=place.h)
                panel.id_val = number
                yield panel
                number, x, height = number + 1, x + place.w, max(height, place.h)
            y += height

    def json(self) -> dict[str, Any]:
        """Return it as Grafana reads it from a file."""
        content: dict[str, Any] = json.loads(json.dumps(self.model(), cls=JSONEncoder))
        return content
