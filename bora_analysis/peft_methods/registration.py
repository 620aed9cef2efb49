"""Register the methods with PEFT.

PEFT's ``register_peft_method`` accepts members of the enumeration ``PeftType`` only, and an enumeration is closed. So
the members are added by hand. This relies on the internals of :mod:`enum`; a test checks it.
"""

from __future__ import annotations

from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING
from peft.utils import register_peft_method

from .config import BoraConfig, HydraloraConfig, MeloraConfig, MoeloraConfig, SboraConfig
from .hot_swap import extend_peft
from .models import BoraModel, HydraloraModel, MeloraModel, MoeloraModel, SboraModel

_METHODS = (
    (BoraConfig, BoraModel),
    (MeloraConfig, MeloraModel),
    (SboraConfig, SboraModel),
    (HydraloraConfig, HydraloraModel),
    (MoeloraConfig, MoeloraModel),
)


class _Prefix(str):
    """PEFT warns of an adapter whose name is within the prefix, such as b: its older versions mistook the keys."""

    def __contains__(self, name: object) -> bool:
        return name == self


def register() -> None:
    """Register BoRA, MELoRA, SBoRA, HydraLoRA and MoELoRA with PEFT.

    The package calls it on import; further calls are harmless.

    Raises
    ------
    RuntimeError
        PEFT has another method with one of these names.

    Examples
    --------
    >>> from bora_analysis.peft_methods import register
    >>> register()
    >>> from peft import PeftType
    >>> PeftType("BORA").value
    'BORA'
    """
    for config, model in _METHODS:
        name = model.prefix.removesuffix("_")
        known = PEFT_TYPE_TO_CONFIG_MAPPING.get(name.upper())  # pyright: ignore[reportArgumentType, reportCallIssue]
        if known is None:
            _add_member(name.upper())
            register_peft_method(name=name, config_cls=config, model_cls=model)
            PEFT_TYPE_TO_PREFIX_MAPPING[PeftType(name.upper())] = _Prefix(model.prefix)
        elif known is not config:
            raise RuntimeError(
                f"this version of PEFT has its own method {name} ({known.__module__}.{known.__name__}); "
                "use the PEFT version that bora_analysis requires"
            )
    extend_peft()


def _add_member(name: str) -> None:
    if name in PeftType.__members__:
        return
    member = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    member._sort_order_ = len(PeftType)  # pyright: ignore[reportAttributeAccessIssue]
    member.__objclass__ = PeftType  # pyright: ignore[reportAttributeAccessIssue]
    PeftType._member_map_[name] = member
    PeftType._member_names_.append(name)
    PeftType._value2member_map_[name] = member
    type.__setattr__(PeftType, name, member)  # the enumeration's own __setattr__ refuses
