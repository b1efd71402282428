//! What a container sees as `/`: mount plan, overlay, pivot, devices, masked paths, image store.
