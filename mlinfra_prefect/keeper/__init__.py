"""The keeper: what owns leases. A resident watcher, short-lived operations, and the client's hold on them."""
