//! Whose a file or a folder is that root makes: the owner's of the folder that it is in. Root repairs (`tidepool metastore
//! restore`), and the process that goes on with the files runs as somebody else, who must be able to open them.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt, fchown},
    path::Path,
};

/// Opens the file at `path`, or makes it: then, by root, for whom its folder belongs to. A file that is there stays whose
/// it is: behind its name may be a link that somebody has put there. Where such a link leads to nothing, root makes
/// nothing.
///
/// # Errors
/// What the system said.
pub fn open_or_make(path: &Path, options: &OpenOptions) -> io::Result<File> {
    let Some(owner) = somebody_else_at(path)? else {
        return options.clone().create(true).open(path);
    };
    let mut again = true;
    let file = loop {
        match options.clone().create_new(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => break made?,
        }
        match options.clone().create(false).open(path) {
            // It has gone in between, or it is a link that leads to nothing.
            Err(error) if error.kind() == io::ErrorKind::NotFound && again => again = false,
            found => return found,
        }
    };
    give(&file, &owner)?;
    Ok(file)
}

/// Makes the folder at `path`, by root for whom the folder belongs to that it is in.
///
/// # Errors
/// What the system said: one that is there already is an error too.
pub fn make_folder(path: &Path) -> io::Result<()> {
    fs::create_dir(path)?;
    let Some(owner) = somebody_else_at(path)? else { return Ok(()) };
    // Whom the folder around it belongs to may have put something else at its name by now.
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let folder = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    give(&folder, &owner)
}

/// Of the folder that `path` is in, when this is root and the folder is somebody else's.
fn somebody_else_at(path: &Path) -> io::Result<Option<Metadata>> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new(".")).metadata()?;
    Ok((folder.uid() != 0 && rustix::process::geteuid().is_root()).then_some(folder))
}

/// Gives away what root has just made.
fn give(made: &File, owner: &Metadata) -> io::Result<()> {
    if made.metadata()?.uid() == 0 {
        fchown(made, Some(owner.uid()), Some(owner.gid()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};

    use super::*;

    fn owner(path: &Path) -> (u32, u32) {
        path.metadata().map(|of| (of.uid(), of.gid())).unwrap()
    }

    #[test]
    fn a_file_that_is_made_belongs_to_whom_its_folder_belongs_and_one_that_is_there_stays_whose_it_is() {
        let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        // Refused to all but root, who is the one that this is about.
        let _ = chown(folder.path(), Some(12_345), Some(12_345));
        let mut options = OpenOptions::new();
        options.append(true);
        let made = folder.path().join("made");
        for _ in 0..2 {
            open_or_make(&made, &options).unwrap();
            assert_eq!(owner(&made), owner(folder.path()));
        }
        let there = elsewhere.path().join("there");
        File::create(&there).unwrap();
        let before = owner(&there);
        symlink(&there, folder.path().join("link")).unwrap();
        open_or_make(&folder.path().join("link"), &options).unwrap();
        assert_eq!(owner(&there), before);
    }

    #[test]
    fn root_makes_nothing_behind_a_link_that_leads_to_nothing_in_a_folder_of_somebody_else() {
        let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let is_root = chown(folder.path(), Some(12_345), Some(12_345)).is_ok();
        let (link, nothing) = (folder.path().join("link"), elsewhere.path().join("nothing"));
        symlink(&nothing, &link).unwrap();
        let refused = open_or_make(&link, OpenOptions::new().append(true)).err().map(|error| error.kind());
        // Who is not root makes there what he may make anyway.
        assert_eq!(refused, is_root.then_some(io::ErrorKind::NotFound));
        assert_eq!(nothing.exists(), !is_root);
    }

    #[test]
    fn a_folder_that_is_made_belongs_to_whom_the_one_around_it_belongs_and_so_does_what_is_made_in_it() {
        let folder = tempfile::tempdir().unwrap();
        // Refused to all but root, who is the one that this is about.
        let _ = chown(folder.path(), Some(12_345), Some(12_345));
        let made = folder.path().join("made");
        make_folder(&made).unwrap();
        open_or_make(&made.join("file"), OpenOptions::new().append(true)).unwrap();
        for path in [made.clone(), made.join("file")] {
            assert_eq!(owner(&path), owner(folder.path()), "{}", path.display());
        }
        assert_eq!(make_folder(&made).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }
}
