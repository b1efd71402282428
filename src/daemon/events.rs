//! What happens on this host, told to whoever listens. Nobody who tells waits for a listener.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::broadcast;

use crate::model::{ContainerState, Event, EventKind, Name};

/// How many events a slow listener may lag behind before it loses the oldest.
const KEPT: usize = 1024;

/// The bus. Clones are the same bus.
#[derive(Debug, Clone)]
pub struct Events(broadcast::Sender<Event>);

impl Events {
    /// A bus that nobody listens to yet.
    pub fn new() -> Self {
        Self(broadcast::channel(KEPT).0)
    }

    /// Tells everybody who listens now.
    pub fn emit(&self, kind: EventKind) {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
        let at_ms = since_epoch.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
        // Without a listener there is nobody to tell, and that is no error.
        let _ = self.0.send(Event { at_ms, kind });
    }

    /// A container came into a state.
    pub fn container(&self, name: &Name, state: ContainerState) {
        self.emit(EventKind::Container {
            name: name.clone(),
            state,
        });
    }

    /// Listens from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }
}

impl Default for Events {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[tokio::test]
    async fn a_listener_hears_what_happens_after_it_came() {
        let events = Events::new();
        let name: Name = "web".parse().unwrap();
        events.container(&name, ContainerState::Created);
        let mut listener = events.subscribe();
        events.container(&name, ContainerState::Running);
        let state = ContainerState::Running;
        assert_eq!(
            listener.recv().await.unwrap().kind,
            EventKind::Container { name, state }
        );
    }

    #[tokio::test]
    async fn a_slow_listener_learns_how_much_it_missed() {
        let events = Events::new();
        let mut listener = events.subscribe();
        let name: Name = "web".parse().unwrap();
        for _ in 0..KEPT + 7 {
            events.container(&name, ContainerState::Running);
        }
        let error = listener.recv().await.unwrap_err();
        assert_eq!(error, broadcast::error::RecvError::Lagged(7));
    }
}
