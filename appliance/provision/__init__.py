"""Configuring the hosts of a site (:mod:`appliance.manifests.site`) over SSH and with Ansible.

* :mod:`~appliance.provision.preflight` looks at every host before anything is changed; the checks
  are in ``checks_*.py`` and what a host says of itself comes from ``host_facts.py``.
* :mod:`~appliance.provision.inventory` turns a site into an inventory.
* :mod:`~appliance.provision.ssh` runs commands on hosts, whose keys are never accepted blindly.
* :mod:`~appliance.provision.delivery` brings the release to them.
* :mod:`~appliance.provision.driver` runs the playbooks, and ``outcome.py`` says what came of it.
"""
