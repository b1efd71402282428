//! Which namespaces a container has, and in which order they are entered.
