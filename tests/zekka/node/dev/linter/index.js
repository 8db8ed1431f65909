// A development dependency: it has no place on a production host.
