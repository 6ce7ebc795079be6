"""LoRA of PEFT on the stacked weights of experts, which `target_parameters` of a configuration names."""

from __future__ import annotations

from typing import Any

from heterolora.common.errors import UserError
from heterolora.elements.peft_layers import PeftLora, Probe

_BASE = ".base_layer"  # between the wrappers of two weights of one module


def is_of_parameter(layer: Any) -> bool:
    """Whether a layer of PEFT adapts a weight of a module that is no linear layer."""
    return hasattr(layer, "parameter_name")


def weight_path(path: str, layer: Any) -> str:
    """The path of the weight in the base model, as `target_parameters` and `rank_pattern` name it."""
    return f"{path.replace(_BASE, '')}.{layer.parameter_name}"


class PeftExperts(PeftLora):
    """One adapter of all experts of a stacked weight: A is (experts · r, in) and B is (out, r · experts).

    All experts are on, or none of them. Their inputs are not those of the module, so nothing can look at them.
    """

    @property
    def probe(self) -> Probe | None:
        return None

    @probe.setter
    def probe(self, probe: Probe | None) -> None:
        if probe is not None:
            found = f"{self.element.module} has the weights of experts, whose inputs a heuristic cannot see"
            raise UserError(found, "use grad_norm, snip, fisher or alpha_test")
