use super::*;

#[test]
fn a_filler_knows_its_place() {
    let parse = |words: &[&str]| parse(words.iter().map(OsString::from));
    let all = ["--images", "/i", "--cgroup", "/c"];
    let (place, successor) = parse(&all).unwrap();
    assert_eq!(place.directory, PathBuf::from("/i/fill"));
    assert!(!successor);
    assert!(parse(&[&all[..], &["--successor"]].concat()).unwrap().1);
    for bad in [
        &["--images", "i", "--cgroup", "/c"][..],
        &["--images"],
        &[],
        &["--x"],
    ] {
        assert!(parse(bad).is_none(), "{bad:?}");
    }
}
