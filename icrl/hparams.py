"""TensorBoard's hparams as summaries for the run's own event file, so that a run stays one run on the board.

A session is begun with its values and ended with an outcome. The three summaries are metadata alone: TensorBoard keeps
the first one of each kind that it reads for a run, so a session that is still going on has no end at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from tensorboardX.proto import api_pb2, plugin_hparams_pb2
from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata

from icrl.config import Config, flatten, to_dict

Outcome = Literal["SUCCESS", "FAILURE"]
Value = bool | int | float | str

SHOWN = (
    "model.layers",
    "model.heads",
    "model.embed_dim",
    "model.mlp_dim",
    "model.attention",
    "model.tokens",
    "train.optimizer.lr",
    "train.global_batch",
    "seed",
)
"""Keys of the config that a run shows unless it is told which."""

METRICS = ("eval/regret_final", "eval/teacher_ratio", "train/validation_loss")
"""Tags shown beside them."""

_PLUGIN = "hparams"
EXPERIMENT_TAG = "_hparams_/experiment"
START_TAG = "_hparams_/session_start_info"
END_TAG = "_hparams_/session_end_info"


def shown_by_default(config: Config) -> dict[str, Value]:
    """The values under `SHOWN`."""
    values = flatten(to_dict(config))
    return {key: values[key] for key in SHOWN}


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last word of each dotted key; where two would be the same, the words that tell them apart."""
    names = {}
    for key in keys:
        words = key.split(".")
        for count in range(1, len(words) + 1):
            name = ".".join(words[-count:])
            if not any(other != key and f".{other}".endswith(f".{name}") for other in keys):
                break
        names[key] = name
    return names


def begin(values: Mapping[str, Value], began: float) -> list[Summary]:
    """The session's start at the time `began`, and the columns that the board shows for it."""
    experiment = api_pb2.Experiment()
    start = plugin_hparams_pb2.SessionStartInfo(start_time_secs=began)
    for key, name in short_names(list(values)).items():
        info = experiment.hparam_infos.add(name=name)
        value = values[key]
        if isinstance(value, bool):
            info.type = api_pb2.DATA_TYPE_BOOL
            start.hparams[name].bool_value = value
        elif isinstance(value, int | float):
            info.type = api_pb2.DATA_TYPE_FLOAT64
            start.hparams[name].number_value = value
        else:
            info.type = api_pb2.DATA_TYPE_STRING
            start.hparams[name].string_value = value
    for tag in METRICS:
        experiment.metric_infos.add(name=api_pb2.MetricName(tag=tag), display_name=tag.partition("/")[2])
    data = plugin_hparams_pb2.HParamsPluginData
    return [_summary(EXPERIMENT_TAG, data(experiment=experiment)), _summary(START_TAG, data(session_start_info=start))]


def end(outcome: Outcome, ended: float) -> Summary:
    """The session's end."""
    info = plugin_hparams_pb2.SessionEndInfo(status=api_pb2.Status.Value(f"STATUS_{outcome}"), end_time_secs=ended)
    return _summary(END_TAG, plugin_hparams_pb2.HParamsPluginData(session_end_info=info))


def outcome_of(summary: Summary) -> Outcome | None:
    """The outcome in a summary that `end` made; None for any other."""
    for value in summary.value:
        if value.tag == END_TAG:
            data = plugin_hparams_pb2.HParamsPluginData.FromString(value.metadata.plugin_data.content)
            return "SUCCESS" if data.session_end_info.status == api_pb2.STATUS_SUCCESS else "FAILURE"
    return None


def _summary(tag: str, data: plugin_hparams_pb2.HParamsPluginData) -> Summary:
    plugin = SummaryMetadata.PluginData(plugin_name=_PLUGIN, content=data.SerializeToString())
    return Summary(value=[Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin))])
