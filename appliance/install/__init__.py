"""From a bundle to a running appliance, one journalled phase after another.

* :mod:`~appliance.install.plan` decides what is to be done, from facts; it touches nothing.
* :mod:`~appliance.install.preflight` judges whether this machine can do it.
* :mod:`~appliance.install.execute` does it, phase by phase, with a journal, and goes back to the
  release before when the new one does not work.
* :mod:`~appliance.install.embedded` joins these to the store, the releases, ``uv``, the keys and
  the cluster of one machine.
* :mod:`~appliance.install.uninstall` takes everything away again.

Whether a phase is done is always asked of the disk, never of the journal: a kill -9 may come
between the act and its record. The journal says who began what, and what to go back to.
"""
