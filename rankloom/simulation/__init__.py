"""Simulated people and things: the bazaar, its user model and its calibration."""

from rankloom.simulation.bazaar import generate_bazaar

__all__ = ["generate_bazaar"]
