"""Kernels of two roles, as texts: a persistent sum over blocks of columns, through a ring of two buffers."""
