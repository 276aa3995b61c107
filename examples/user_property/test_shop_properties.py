from shop_properties import PLATFORMS

from nami_amp_pipeline.testing import PropertySuite


class TestPlatforms(PropertySuite):
    declared = PLATFORMS
    examples = (
        ({"active_entitlements": [{"purchase_platform": "roku"}, {"purchase_platform": "apple"}]}, ["apple", "roku"]),
        ({"active_entitlements": []}, []),
    )
