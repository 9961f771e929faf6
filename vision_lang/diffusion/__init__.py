"""Diffusion as pure functions of arrays: schedules, predictions, losses' weights, samplers."""
