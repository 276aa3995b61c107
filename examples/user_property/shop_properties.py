from nami_amp_pipeline.contract import Property

PLATFORMS = Property(
    name="shop_purchase_platforms",
    group="entitlements",
    path="active_entitlements[].purchase_platform",
    kind="texts",
    means="where what is active was bought",
)
