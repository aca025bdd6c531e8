"""Networks without a defence that hides anything: their audits are not doubted."""

from tests.zoo.base import Entry, robust, weak

TABLE = [
    Entry("plain CNN", weak, 0.1),
    Entry("adversarially trained CNN", robust, 0.3),
]
