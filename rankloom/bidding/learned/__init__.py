"""Learned bidders (generation 3): offline RL, decision transformers, GAVE, CBD; one file each, one way in and out."""
