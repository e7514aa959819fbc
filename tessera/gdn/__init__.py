"""Kernels of Gated DeltaNet, written in the language of the public API, and the function that calls them."""

from tessera.gdn.delta_rule import gated_delta_rule

__all__ = ["gated_delta_rule"]
