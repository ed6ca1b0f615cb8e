"""What parts of a config build."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import Registry

from mmlavit.errors import UserError


def type_name(node: Mapping[str, Any] | None, default: str = '') -> str:
    """Give the bare name of what a part of a config builds, which may be said by name, with a scope, or as a class.

    Args:
        node (Mapping, optional): Part of a config, with 'type'.
        default (str): The name where there is none.
    """
    kind = (node or {}).get('type', default)
    return getattr(kind, '__name__', str(kind)).rpartition('.')[2]


def find_class(node: Mapping[str, Any], registry: Registry) -> type | str | None:
    """Give the class of what a part of a config builds.

    Args:
        node (Mapping): Part of a config; its 'type' is a name, or in configs in pure Python the class.
        registry (Registry): Where names are looked up, in the scope that is set.

    Returns:
        type or str, optional: The class; the name if it is not known; None without 'type'.
    """
    kind = node.get('type')
    if isinstance(kind, str):
        with registry.switch_scope_and_registry(None) as current:
            kind = current.get(kind) or kind
    return kind


def model_config(cfg: Config) -> ConfigDict:
    """Give the config of a model as a Runner builds it: with the data preprocessor that may stand beside it.

    mmpretrain's own configs have it there.

    Args:
        cfg (Config): Config of a classifier, detector or segmentor.

    Returns:
        ConfigDict: A copy, since some detectors write into what they are built from.

    Raises:
        UserError: If there is no model.
    """
    if cfg.get('model') is None:
        raise UserError(f'config {getattr(cfg, "filename", None) or ""} has no model; is it a part of others (_base_)?')
    model = deepcopy(cfg.model)
    if cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', deepcopy(cfg.data_preprocessor))
    return model


def without_initialisation(model: Any) -> Any:
    """Copy the config of a model without what would be downloaded or drawn for nothing.

    Args:
        model (Any): The config, or a part of it.

    Returns:
        Any: Without ``init_cfg`` and ``pretrained`` at any depth.
    """
    if isinstance(model, Mapping):
        return ConfigDict(
            {k: without_initialisation(v) for k, v in model.items() if k not in ('init_cfg', 'pretrained')}
        )
    if isinstance(model, (list, tuple)):
        return type(model)(without_initialisation(item) for item in model)
    return model
