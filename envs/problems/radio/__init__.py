"""Problems of radio interferometry; importing this package registers them."""

from envs.problems.radio import radio_closure, radio_uv

__all__ = ["radio_closure", "radio_uv"]
