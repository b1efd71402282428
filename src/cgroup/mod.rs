//! cgroup v2: plan, apply, freezer, usage.
