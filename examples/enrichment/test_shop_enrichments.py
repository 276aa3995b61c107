import pyarrow as pa
from shop_enrichments import LIFETIME_VALUE

from nami_amp_pipeline.testing import EnrichmentSuite


class TestLifetimeValue(EnrichmentSuite):
    declared = LIFETIME_VALUE
    tables = {"user_ltv": pa.table({"user_id": ["ann"], "ltv": [12.5]})}
    examples = (("ann", {}, {"shop_lifetime_value": 12.5}), ("ben", {}, {}))
