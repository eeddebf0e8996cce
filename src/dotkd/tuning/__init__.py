"""Tuning each trainer on the validation split, with one budget for all: spaces, protocol, studies, trials."""
