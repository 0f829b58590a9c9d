"""A setting that weights depend on but do not show travels with them."""

from __future__ import annotations

import torch


class SettingInWeights:
    """Mixin of a module whose weights fit only one value of a setting; torch's extra state carries the value.

    Weights of another value are refused when they are loaded, weights that say nothing are taken.

    Attributes:
        setting_name: what the setting is called in errors.
    """

    setting_name: str

    def setting(self) -> list[int]:
        """The value."""
        raise NotImplementedError

    def get_extra_state(self) -> torch.Tensor:
        return torch.tensor(self.setting(), device="cpu")

    def set_extra_state(self, state: torch.Tensor) -> None:
        """Raise ValueError for weights that were trained with another value."""
        if state.tolist() != self.setting():
            raise ValueError(
                f"the weights were trained with {self.setting_name} {state.tolist()}, this model has "
                f"{self.setting()}"
            )

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        state_dict.setdefault(f"{prefix}_extra_state", self.get_extra_state())
        super()._load_from_state_dict(state_dict, prefix, *args)
