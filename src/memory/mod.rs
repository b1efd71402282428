//! Pages on the move: CRIU's page-server wire, page frames, the destination's page store.
