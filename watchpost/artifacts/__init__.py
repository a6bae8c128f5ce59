"""The artifact store: what a host will run, pinned, verified and in one form, wherever it came from.

`catalogue` says what is pinned; `store` keeps archives and checks them on every use; `release`, `mirror`, `gobuild`
and `wheelhouse` each fill it; `ensure` decides which of them is asked; `cli` is the command line.
"""
