"""The shared ledger: S3 with conditional writes, beside the Terraform state that lies there too."""

from __future__ import annotations

from mlinfra_prefect.aws.objects import S3Objects
from mlinfra_prefect.aws.sdk import client
from mlinfra_prefect.ledger.object_ledger import ObjectLedger
from mlinfra_prefect.model.ledger_address import LedgerAddress, parse_address


class S3Ledger(ObjectLedger):
    """See `ledger.Ledger`. Region, credentials and endpoint are boto3's: its files, ``AWS_*``, the instance's role.

    A handle does not survive a fork: open another one in the child.
    """

    def __init__(self, address: LedgerAddress | str) -> None:
        """Open the ledger at an address, such as ``s3://acme-mlinfra/ledger``. The bucket must exist.

        Raises:
            InvalidInput: the address is malformed.
            LedgerUnavailable: S3 cannot be reached, refuses us, or has no such bucket.
            LedgerUnreadable: a newer version made the ledger, or it is damaged.
            UnsupportedHere: boto3 is not installed.
        """
        place = address if isinstance(address, LedgerAddress) else parse_address(address, field="ledger")
        super().__init__(S3Objects(client(), place))
