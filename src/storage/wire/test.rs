use super::encode::put;
use super::*;
use proptest::prelude::*;

fn path(bytes: &[u8]) -> TreePath<'_> {
    TreePath::new(bytes).unwrap()
}

fn given_one_of_each() -> Vec<Record<'static>> {
    let at = path(b"a/b");
    vec![
        Record::Directory { path: path(b"a") },
        Record::File { path: at, size: 70 },
        Record::Resize { path: at, size: 7 },
        Record::Data {
            path: at,
            offset: 3,
            bytes: b"contents",
        },
        Record::Hole {
            path: at,
            offset: 4096,
            length: 8192,
        },
        Record::Symlink {
            path: path(b"a/\xff\xfe"),
            target: b"../../etc/passwd",
        },
        Record::Node {
            path: path(b"w"),
            kind: NodeKind::Character,
            rdev: 0,
        },
        Record::Link {
            path: path(b"l"),
            to: at,
        },
        Record::Attributes {
            path: path(b""),
            attributes: Attributes {
                mode: 0o4755,
                uid: 1,
                gid: 2,
                mtime: FileTime {
                    secs: -5,
                    nanos: 999_999_999,
                },
                xattrs: vec![(b"user.a", b""), (b"trusted.overlay.opaque", b"y")],
            },
        },
        Record::Xattr {
            path: at,
            name: b"user.big",
            value: b"\0\0",
        },
        Record::Delete { path: at },
    ]
}

fn batch_of(records: &[Record<'_>]) -> Vec<u8> {
    let mut batch = begin();
    records.iter().for_each(|record| record.encode(&mut batch));
    batch
}

#[test]
fn every_record_comes_back_as_it_went() {
    let records = given_one_of_each();
    let batch = batch_of(&records);
    assert_eq!(decode(&batch).unwrap(), records);
}

#[test]
fn a_batch_cut_anywhere_gives_whole_records_or_an_error() {
    let records = given_one_of_each();
    let batch = batch_of(&records);
    let mut whole = 0;
    for end in 0..batch.len() {
        if let Ok(some) = decode(&batch[..end]) {
            assert_eq!(some, records[..some.len()], "cut at {end}");
            whole += 1;
        }
    }
    // Valid only at the borders between records.
    assert_eq!(whole, records.len());
}

#[test]
fn a_path_that_leads_out_is_refused() {
    let long = [b'a'; MAX_NAME + 1];
    let deep = b"abc/".repeat(MAX_PATH / 4 + 1);
    for bytes in [
        &b"/etc/passwd"[..],
        b"..",
        b"../x",
        b"a/../../x",
        b"a/..",
        b"./a",
        b"a/./b",
        b"a//b",
        b"a/",
        b"a\0b",
        &long,
        &deep[..deep.len() - 1],
    ] {
        assert!(TreePath::new(bytes).is_err(), "{bytes:?}");
    }
    for bytes in [&b"..."[..], b"..a", b"a/.b/c..", b" ", b"\xff"] {
        assert!(TreePath::new(bytes).is_ok(), "{bytes:?}");
    }
}

#[test]
fn a_path_is_split_at_the_last_name() {
    assert_eq!(path(b"").split(), None);
    assert_eq!(path(b"a").split(), Some((path(b""), &b"a"[..])));
    assert_eq!(path(b"a/b/c").split(), Some((path(b"a/b"), &b"c"[..])));
}

#[test]
fn values_out_of_bounds_are_refused() {
    let fields = |kind: u8, fields: &[&[u8]]| {
        let body = [&[kind][..], &fields.concat()].concat();
        let mut batch = begin();
        put(&mut batch, &body);
        batch
    };
    let name = [1, 0, 0, 0, b'a'];
    let none = [0; 4];
    let huge = u64::MAX.to_le_bytes();
    let cases = [
        // A negative size, an unknown special file, an unknown kind, bytes after the end.
        fields(2, &[&name, &huge]),
        fields(7, &[&name, &[9], &[0; 8]]),
        fields(0, &[&name]),
        fields(12, &[&name]),
        fields(11, &[&name, &[0]]),
        // A type in the mode, a user that means none, too many nanoseconds.
        fields(9, &[&name, &0o100_644_u32.to_le_bytes(), &[0; 20]]),
        fields(9, &[&name, &none, &[0xff; 4], &[0; 16]]),
        fields(9, &[&name, &[0; 20], &1_000_000_000_u32.to_le_bytes()]),
        // A link without text, an attribute without name.
        fields(6, &[&name, &none]),
        fields(10, &[&name, &none, &none]),
        // A length that points far past the end.
        fields(1, &[&[0xff; 4]]),
        vec![],
        vec![2],
        vec![VERSION; MAX_BATCH + 1],
    ];
    for batch in cases {
        let shown = &batch[..batch.len().min(40)];
        assert!(decode(&batch).is_err(), "{shown:?}");
    }
}

#[test]
fn the_largest_records_fit_into_a_batch() {
    let name = [b'n'; MAX_NAME];
    let mut long = vec![name; MAX_PATH / (MAX_NAME + 1)].join(&b'/');
    long.truncate(MAX_PATH);
    let long = path(&long);
    let data = vec![1; MAX_DATA];
    let records = [
        Record::Data {
            path: long,
            offset: 0,
            bytes: &data,
        },
        Record::Link {
            path: long,
            to: long,
        },
        Record::Xattr {
            path: long,
            name: &name,
            value: &data[..MAX_VALUE],
        },
    ];
    for record in records {
        let batch = batch_of(std::slice::from_ref(&record));
        assert!(batch.len() < MAX_BATCH);
        assert_eq!(decode(&batch).unwrap(), [record]);
    }
}

proptest! {
    #[test]
    fn any_bytes_are_decoded_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode(&bytes);
        let _ = decode(&[&[VERSION][..], &bytes].concat());
    }

    /// What the decoder accepts is exactly what the encoder makes: there is one spelling.
    #[test]
    fn a_mutated_batch_is_refused_or_encodes_to_itself(
        changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..4)
    ) {
        let mut batch = batch_of(&given_one_of_each());
        for (place, byte) in changes {
            let place = place % batch.len();
            batch[place] = byte;
        }
        if let Ok(records) = decode(&batch) {
            prop_assert_eq!(batch_of(&records), batch);
        }
    }
}
