"""The inventory says all that roles need of a site, and nothing that is secret."""

from __future__ import annotations

from pathlib import Path

import yaml

from appliance.manifests.site import Site
from appliance.provision.inventory import Deployment, inventory
from tests.unit.test_manifests_site import two_domains

DEPLOYMENT = Deployment("demo-1.0-abcd", Path("/home/op/sites/clinic"), "packages/debian", 3)


def test_hosts_are_grouped_by_role_and_domain_and_reached_over_management() -> None:
    made = inventory(Site.model_validate(two_domains()), DEPLOYMENT)["all"]
    assert made["hosts"]["c"]["ansible_host"] == "fd00:1::3"
    assert made["hosts"]["c"]["cluster_address"] == "10.1.0.3"
    assert made["hosts"]["c"]["host_files"] == "/home/op/sites/clinic/hosts/c"
    assert made["children"]["ray_worker"]["hosts"].keys() == {"b", "c"}
    assert made["children"]["time_source"]["hosts"].keys() == {"a"}
    assert made["children"]["domain_tune"]["vars"] == {
        "trust_domain": "tune",
        "trust_domain_purpose": "tuning",
        "ray_head_address": "10.1.0.2",
    }
    assert made["vars"]["management_networks"] == ["fd00:1::/64"]
    assert made["vars"]["release_dir"] == "/var/lib/sovctl/releases/demo-1.0-abcd"
    assert yaml.safe_load(yaml.safe_dump(made)) == made


def test_a_user_other_than_root_becomes_root_and_a_key_is_named_by_its_file() -> None:
    content = two_domains()
    content["hosts"][1]["ssh"] = {"user": "ops", "key": "/root/.ssh/site"}
    hosts = inventory(Site.model_validate(content), DEPLOYMENT)["all"]["hosts"]
    assert hosts["b"]["ansible_become"] is True
    assert hosts["b"]["ansible_ssh_private_key_file"] == "/root/.ssh/site"
    assert hosts["a"]["ansible_become"] is False
    assert "ansible_ssh_private_key_file" not in hosts["a"]


def test_what_is_not_set_is_not_there() -> None:
    site = Site.model_validate(two_domains())
    assert "previous_release" not in inventory(site, DEPLOYMENT)["all"]["vars"]
    assert inventory(site, DEPLOYMENT)["all"]["vars"]["shared_storage"] == {
        "kind": "mounted",
        "server": "",
        "export": "",
        "path": "/srv/shared",
    }
