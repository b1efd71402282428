//! A container becomes images, images become a container, on one host.
