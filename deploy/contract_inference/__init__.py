"""Inference of a contract from a preprocessing function, which is asked with probe images."""
