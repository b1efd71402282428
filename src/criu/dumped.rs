//! Which pages a dump has taken, as its `pagemap` image lists them.

use std::ops::Range;

use prost::Message;

use crate::model::Pages;

const COMMON_MAGIC: u32 = 0x5456_4319;
const PAGEMAP_MAGIC: u32 = 0x5608_4025;
const PAGE: u64 = 4096;

#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct Entry {
    #[prost(uint64, required, tag = "1")]
    address: u64,
    /// Up to CRIU 3; still written where it fits.
    #[prost(uint32, optional, tag = "2")]
    few_pages: Option<u32>,
    #[prost(uint64, optional, tag = "5")]
    pages: Option<u64>,
}

/// How many pages of a `pagemap` image are inside of `range` and how many outside; none where it is no such image.
pub(super) fn dumped(image: &[u8], range: &Range<u64>) -> Option<(Pages, Pages)> {
    let mut rest = image;
    if word(&mut rest)? != COMMON_MAGIC || word(&mut rest)? != PAGEMAP_MAGIC {
        return None;
    }
    // The head names the file of the pages.
    record(&mut rest)?;
    let (mut inside, mut all) = (0, 0);
    while !rest.is_empty() {
        let entry = Entry::decode(record(&mut rest)?).ok()?;
        let pages = entry.pages.or(entry.few_pages.map(u64::from))?;
        let end = entry.address.checked_add(pages.checked_mul(PAGE)?)?;
        let common = end.min(range.end);
        inside += common.saturating_sub(entry.address.max(range.start)) / PAGE;
        all += pages;
    }
    Some((Pages(inside), Pages(all - inside)))
}

fn word(rest: &mut &[u8]) -> Option<u32> {
    let (word, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(u32::from_le_bytes(*word))
}

/// A length and as many bytes.
fn record<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(word(rest)?).ok()?;
    let (record, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(record)
}

#[cfg(test)]
mod test {
    use super::*;

    fn image(entries: &[(u64, Option<u32>, Option<u64>)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(COMMON_MAGIC.to_le_bytes());
        bytes.extend(PAGEMAP_MAGIC.to_le_bytes());
        bytes.extend([2, 0, 0, 0, 8, 1]);
        for &(address, few_pages, pages) in entries {
            let entry = Entry {
                address,
                few_pages,
                pages,
            };
            let message = entry.encode_to_vec();
            bytes.extend((message.len() as u32).to_le_bytes());
            bytes.extend(message);
        }
        bytes
    }

    #[test]
    fn pages_are_counted_inside_and_outside_of_a_range() {
        let image = image(&[
            (0x1000, Some(3), None),
            (0x8000, Some(1), Some(4)),
            (0x20000, None, Some(1)),
        ]);
        let count = |range| dumped(&image, &range).unwrap();
        assert_eq!(count(0x2000..0x9000), (Pages(3), Pages(5)));
        assert_eq!(count(0..u64::MAX), (Pages(8), Pages(0)));
        assert_eq!(count(0x4000..0x8000), (Pages(0), Pages(8)));
    }

    #[test]
    fn what_is_no_pagemap_is_no_answer() {
        let good = image(&[(0x1000, None, Some(1))]);
        for cut in 0..good.len() {
            // The head alone is an image of no pages.
            if cut != 14 {
                assert_eq!(dumped(&good[..cut], &(0..1)), None, "{cut}");
            }
        }
        let far = image(&[(u64::MAX, None, Some(1))]);
        assert_eq!(dumped(&far, &(0..1)), None);
        let many = image(&[(0, None, Some(u64::MAX))]);
        assert_eq!(dumped(&many, &(0..1)), None);
        let none = image(&[(0, None, None)]);
        assert_eq!(dumped(&none, &(0..1)), None);
    }
}
