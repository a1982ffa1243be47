"""Where a state can be steered, in TransformerLens' names.

| site | the state h that a map is fitted on and applied to | what is written |
|---|---|---|
| `attn_out` | the attention's output a^l | a^l |
| `resid_mid` | the residual stream behind the attention, x_pre^l + a^l | a^l, by the displacement of h |
| `mlp_out` | the MLP's output f^l | f^l |
| `resid_post` | the residual stream behind the layer, x_mid^l + f^l | f^l, by the displacement of h |
| `z` | the outputs of chosen heads before W_O, side by side | those heads' z |

The residual stream itself is never overwritten: whatever steers is a term that a sub-layer adds, so that attribution
sees it as one (module "steer" or "steer_mlp") and its layer scores still sum up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from reports.errors import InputError

__all__ = ["SITES", "Heads", "Site", "SiteName", "read_site", "site_of"]

SiteName = Literal["attn_out", "resid_mid", "mlp_out", "resid_post", "z"]
Heads = tuple[int, ...]


@dataclass(frozen=True)
class Site:
    """Hook points in a block.

    Attributes:
        read: It has h.
        write: It is changed.
        base: What (a sum) must be added to `write` to give h.
    """

    read: str
    write: str
    base: tuple[str, ...] = ()


SITES: dict[SiteName, Site] = {
    "attn_out": Site("hook_attn_out", "hook_attn_out"),
    "resid_mid": Site("hook_resid_mid", "hook_attn_out", base=("hook_resid_pre",)),
    "mlp_out": Site("hook_mlp_out", "hook_mlp_out"),
    "resid_post": Site("hook_resid_post", "hook_mlp_out", base=("hook_resid_pre", "hook_attn_out")),
    "z": Site("attn.hook_z", "attn.hook_z"),
}


def site_of(name: str) -> Site:
    """The site of this name.

    Raises:
        InputError: There is none.

    >>> site_of("resid_mid").write
    'hook_attn_out'
    """
    if name not in get_args(SiteName):
        raise InputError(f"site: expected one of {', '.join(get_args(SiteName))}, found {name!r}")
    return SITES[name]  # type: ignore[index]


def read_site(layer: int, name: str) -> str:
    """The hook point that holds h at this layer.

    >>> read_site(3, "attn_out")
    'blocks.3.hook_attn_out'
    """
    return f"blocks.{layer}.{site_of(name).read}"


def part(states: Tensor, heads: Heads | None) -> Tensor:
    """The state h [B, d] of states [B, d], or of z [B, H, d_head] the chosen heads side by side."""
    return states if heads is None else states[:, list(heads)].flatten(1)
