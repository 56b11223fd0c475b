"""What other libraries' files say in their own way: the mapping of names of transformers, the adapters of peft."""

from __future__ import annotations

import copy
import json
import logging
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from ftkit._tensors.file import TensorInfo
from ftkit._weights.sources import Source
from ftkit._weights.tables import Entry, Table
from ftkit._wording import shown, some
from ftkit.errors import CheckpointError

_log: Final = logging.getLogger("ftkit")

PROMPT: Final = "prompt_embeddings"
"""What peft calls a trained prompt in its files."""

_LARGEST: Final = 1 << 20  # bytes of an adapter's configuration
# Settings of an adapter that change only how it is trained, or that names and shapes of its tensors tell.
_UNFELT: Final = re.compile(
    r"auto_mapping|base_model_name_or_path|revision|task_type|inference_mode|peft_version|bias|\w+_bias|modules_to_save"
    r"|(target|exclude)_\w+|layers_(to_transform|pattern)|trainable_token_indices|ensure_weight_tying|save_\w+"
    r"|\w*(init|dropout)\w*|(runtime|megatron|loftq|eva|corda|lora_ga|velora)_\w+"
    r"|tfinal|deltaT|beta[12]|total_step|orth_reg_weight"
)
_CHANGES_BASE: Final = re.compile(
    r"pissa|olora|corda|loftq"
)  # ways to start an adapter that change the weights under it


class Library:
    """The mapping between names and tensors in files and in modules that transformers keeps for a model, from 5.0 on.

    ``save_pretrained`` writes by it, and ``from_pretrained`` reads by it: a ViT's modules have other names than its
    files, and the experts of a Mixtral are one tensor in the module and many in the file.
    """

    def __init__(self, model: nn.Module, mapping: list[Any], code: Any) -> None:
        self._model: Any = model
        self._code = code
        self._renamings = [one for one in mapping if isinstance(one, code.WeightRenaming)]
        self._converters = [one for one in mapping if isinstance(one, code.WeightConverter)]
        self._state: dict[str, Any] = model.state_dict()

    @classmethod
    def of(cls, model: nn.Module) -> Library | None:
        """Return the library of a model; None for one of another library, or of a version without a mapping."""
        modules = [sys.modules.get(f"transformers.{name}") for name in ("conversion_mapping", "core_model_loading")]
        base = getattr(sys.modules.get("transformers.modeling_utils"), "PreTrainedModel", None)
        if base is None or None in modules or not isinstance(model, base):
            return None
        mappings, code = modules
        try:
            return cls(model, mappings.get_model_conversion_mapping(model), code)  # type: ignore[union-attr]
        except (AttributeError, TypeError) as error:
            _log.warning(
                "The mapping of names that this version of transformers keeps for a %s can't be used (%s): names in "
                "files are compared with those of the modules.",
                *(type(model).__name__, error),
            )
            return None

    def converted(self, table: Table, renamed: Mapping[str, str]) -> tuple[Table, dict[str, str]] | None:
        """Convert a table and the new names of its tensors, in the order and by the rules of ``from_pretrained``.

        Tensors that several others are made from stay in the file until they are read. None if nothing would change.
        """
        entries: dict[str, Entry] = {}
        names: dict[str, str] = {}
        groups: dict[str, _Group] = {}
        for key in sorted(renamed, key=lambda key: self._code.dot_natural_key(renamed[key])):
            entry = table.entries[key]
            entry.budget.charge(steps=len(self._renamings) + len(self._converters))
            name, pattern = self._new_name(renamed[key])
            if pattern is None or name not in self._state:
                entries[key], names[key] = entry, renamed[key] if pattern is not None else name
                continue
            if name not in groups:
                converter = next(one for one in self._converters if pattern in one.source_patterns)
                groups[name] = _Group(name, converter, self._model, [])
            groups[name].parts.append((key, pattern, entry))
        for group in groups.values():
            made = group.made()
            if made is None:  # something that it is made from is missing
                entries |= {key: entry for key, _, entry in group.parts}
                names |= {key: renamed[key] for key, _, _ in group.parts}
            else:
                entries |= made
                names |= {name: name for name in made}
        if names == renamed:
            return None
        return Table(table.path, entries, mapped=f"mapped as transformers maps a {type(self._model).__name__}"), names

    def _new_name(self, name: str) -> tuple[str, str | None]:
        prefix = self._model.base_model_prefix
        rename = self._code.rename_source_key
        new, pattern = rename(name, self._renamings, self._converters, prefix, self._state)
        if new not in self._state and name in self._state:
            new, pattern = rename(name, [], [], prefix, self._state)
        return new, pattern


@dataclass(eq=False)
class _Group:
    """Tensors of a file from which one or several of the model's are made.

    Attributes:
        name: The first of those in the model.
        converter: What makes them.
        model: The model.
        parts: The tensors in the file: their keys, the patterns that they matched, and themselves.
    """

    name: str
    converter: Any
    model: Any
    parts: list[tuple[str, str, Entry]]

    def made(self) -> dict[str, Entry] | None:
        """Return what is made, by name in the model; None if it can't be made from these parts."""
        blanks = [torch.empty(entry.shape, dtype=entry.dtype, device="meta") for _, _, entry in self.parts]
        try:
            made = self._convert(blanks)
        except Exception as error:  # noqa: BLE001  (any operation of another library, which did not get what it needs)
            _log.debug("%s can't be made from %s: %s", self.name, [key for key, _, _ in self.parts], error)
            return None
        budget = self.parts[0][2].budget
        return {
            name: Entry(TensorInfo(name, tensor.dtype, tuple(tensor.shape), 0), self._read, name, budget)
            for name, tensor in made.items()
        }

    def _read(self, pairs: list[tuple[Entry, Tensor]]) -> None:
        values = [entry.empty() for _, _, entry in self.parts]
        Source.read_into((entry, value) for (_, _, entry), value in zip(self.parts, values, strict=True))
        made = self._convert(values)
        for entry, target in pairs:
            target.detach().copy_(made[entry.key])

    def _convert(self, values: list[Tensor]) -> dict[str, Tensor]:
        converter = copy.deepcopy(self.converter)
        for (key, pattern, _), value in zip(self.parts, values, strict=True):
            converter.add_tensor(self.name, key, pattern, value)
        made = converter.convert(self.name, model=self.model, config=self.model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


# ---- adapters of peft


def adapter_names(model: nn.Module) -> dict[str, str]:
    """Return the names that peft's ``save_pretrained`` gives to the tensors of a model's active adapter.

    From names in the file to names in the model; empty for a model that is not a ``PeftModel``.
    """
    peft = sys.modules.get("peft")
    if peft is None or not isinstance(model, peft.PeftModel):
        return {}
    adapter = model.active_adapter
    state = {name: value for name, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    own = {id(value): name for name, value in state.items()}
    # Without embeddings: to know whether peft would add them, it would ask the hub.
    kept = peft.get_peft_model_state_dict(model, state_dict=state, adapter_name=adapter, save_embedding_layers=False)
    names = {name: own[id(value)] for name, value in kept.items() if id(value) in own}
    encoder = f"prompt_encoder.{adapter}."
    if [name for name in state if name.startswith(encoder)] == [f"{encoder}embedding.weight"]:
        names[PROMPT] = f"{encoder}embedding.weight"  # from an encoder with more weights, the file has what they give
    return names


def adapter_settings(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return what no tensor shows of peft's adapters in a model, by the names of the adapters.

    Raises:
        CheckpointError: They are merged into the weights.

    Example:
        >>> import torch
        >>> from ftkit._weights.libraries import adapter_settings
        >>> adapter_settings(torch.nn.Linear(2, 2))
        {}
    """
    found: dict[str, dict[str, Any]] = {}
    known: set[int] = set()
    for prefix, module in model.named_modules():  # peft's parts share their configurations; the outermost comes first
        if getattr(module, "merged_adapters", None):
            raise CheckpointError(
                f"The adapters of {prefix} are merged into its weights, so those are not the pretrained ones, and new "
                "adapters would have no effect. Call unmerge_adapter() of the peft model first."
            )
        configs = getattr(module, "peft_config", None)
        for adapter, config in configs.items() if isinstance(configs, dict) else ():
            if id(config) not in known and hasattr(config, "peft_type"):
                known.add(id(config))
                found[f"{prefix}.{adapter}" if prefix else adapter] = _settings(config.to_dict())
    return found


def check_adapters(recorded: Any, model: nn.Module, source: str) -> None:
    """Compare the adapters of a model with the settings of those that a file was made with; older files have none.

    Raises:
        CheckpointError: One of them computes in another way.
    """
    if not isinstance(recorded, Mapping):
        return
    for adapter, own in adapter_settings(model).items():
        saved = recorded.get(adapter)
        pairs = {name: (saved[name], own[name]) for name in own if isinstance(saved, Mapping) and name in saved}
        other = [name for name, (there, here) in pairs.items() if there != here and (there or here)]
        if other:
            told = some(
                [f"{name}={shown(repr(pairs[name][0]))}, here {own[name]!r}" for name in sorted(other)], 8, "; "
            )
            raise CheckpointError(
                f"{source} comes from an adapter with other settings: {told}. Its weights would give other outputs in "
                "this model. Wrap the model with the configuration of training, peft.get_peft_model(model, config); "
                "peft.PeftConfig.from_pretrained(folder) reads it."
            )


def check_adapter_beside(file: Path | None, model: Any, source: str) -> None:
    """Compare the active adapter of a ``PeftModel`` with the settings that ``save_pretrained`` wrote beside a file.

    Raises:
        CheckpointError: It computes in another way, or the settings can't be read.
    """
    own = adapter_settings(model)
    path = None if file is None or not file.name.startswith("adapter_model.") else file.parent / "adapter_config.json"
    if not own or path is None or not path.is_file():
        return
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError("it is too large")
        saved = _settings(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{shown(path)} is not what save_pretrained of peft writes: {error}.") from error
    check_adapters({model.active_adapter: saved}, model, source)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What matters of a configuration, as JSON has it; sets of names are in no order."""
    felt = {name: value for name, value in config.items() if not _UNFELT.fullmatch(name)}
    if "init_lora_weights" in config:
        start = str(config["init_lora_weights"])
        felt["init_lora_weights"] = start if _CHANGES_BASE.match(start) else True
    plain = json.loads(json.dumps(felt, default=lambda value: list(value) if isinstance(value, set) else str(value)))
    return {
        name: sorted(value) if isinstance(value, list) and all(isinstance(one, str) for one in value) else value
        for name, value in plain.items()
    }
