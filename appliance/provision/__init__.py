"""Configuring the hosts of a site (:mod:`appliance.manifests.site`) with Ansible.

:mod:`~appliance.provision.inventory` turns a site into an inventory. The driver that runs the
playbooks is not in this release; ``sovctl install --site`` says so.
"""
