"""What the appliance knows: API keys, data sets, models, jobs and adapters, in one SQLite file.

>>> registry = Registry.open(home)                     # migrates an older file by itself
>>> key, plaintext = registry.api_keys.create("ward-3", Role.USER)
>>> registry.api_keys.authenticate(plaintext)          # ApiKey, or None
>>> registry.jobs.update(job.id, status=JobStatus.RUNNING)

Every verb is one transaction and is safe from several processes and threads. What comes back is a
frozen dataclass of :mod:`appliance.registry.records`, never a row that is tied to a session.
"""

from appliance.registry.records import Adapter, ApiKey, Dataset, Job, Model
from appliance.registry.roles import Role, permits
from appliance.registry.states import AdapterStatus, JobStatus
from appliance.registry.store import Registry

__all__ = [
    "Adapter",
    "AdapterStatus",
    "ApiKey",
    "Dataset",
    "Job",
    "JobStatus",
    "Model",
    "Registry",
    "Role",
    "permits",
]
