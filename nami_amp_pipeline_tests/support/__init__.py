"""What the tests stand on: real servers, scenes, generated histories, the plain reading."""
