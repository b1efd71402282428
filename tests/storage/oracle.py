"""Prints everything a program can see of a tree, one object a line: an independent witness."""
import hashlib, os, stat, sys


def holes(fd, size):
    ranges, at = [], 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            break
        at = os.lseek(fd, start, os.SEEK_HOLE)
        ranges.append((start, at))
    return ranges


def show(name, path, links):
    st = os.lstat(name)
    kind = stat.S_IFMT(st.st_mode)
    line = [path.hex(), oct(st.st_mode), st.st_uid, st.st_gid, st.st_mtime_ns]
    if kind != stat.S_IFDIR:
        # Hard links: the first name in order stands for the inode.
        line.append(links.setdefault((st.st_dev, st.st_ino), path).hex())
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        line.append(st.st_rdev)
    if kind == stat.S_IFLNK:
        line.append(os.readlink(name).hex())
    if kind == stat.S_IFREG:
        fd = os.open(name, os.O_RDONLY | os.O_NOATIME)
        digest = hashlib.sha256()
        while chunk := os.read(fd, 1 << 20):
            digest.update(chunk)
        line += [st.st_size, digest.hexdigest(), holes(fd, st.st_size)]
        os.close(fd)
    for key in sorted(os.listxattr(name, follow_symlinks=False)):
        line.append((key, os.getxattr(name, key, follow_symlinks=False).hex()))
    print(*line)
    return kind == stat.S_IFDIR


def main(root):
    os.chdir(root)
    links, path = {}, []
    show(b".", b".", links)
    # Step by step with chdir: a tree may be deeper than PATH_MAX.
    stack = [iter(sorted(os.listdir(b".")))]
    while stack:
        name = next(stack[-1], None)
        if name is None:
            stack.pop()
            if path:
                path.pop()
                os.chdir("..")
        elif show(name, b"/".join(path + [name]), links):
            path.append(name)
            os.chdir(name)
            stack.append(iter(sorted(os.listdir(b"."))))


main(sys.argv[1])
