from shop_collector import Collector

from nami_amp_pipeline.testing import DestinationSuite


class TestCollector(DestinationSuite):
    destination = Collector()

    def id_of(self, event):
        return event["key"]
