//! Whose a file is that root makes: the folder's owner's. Root repairs (`tidepool metastore restore`), and the process
//! that goes on with the files runs as somebody else, who must be able to open them.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, fchown},
    path::Path,
};

/// Opens the file at `path`, or makes it: then, by root, for whom its folder belongs to. A file that is there stays whose
/// it is: behind its name may be a link that somebody has put there.
///
/// # Errors
/// What the system said.
pub fn open_or_make(path: &Path, options: &OpenOptions) -> io::Result<File> {
    let file = match options.clone().create_new(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return options.clone().create(true).open(path);
        }
        made => made?,
    };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let (here, there) = (file.metadata()?, folder.unwrap_or(Path::new(".")).metadata()?);
    if here.uid() == 0 && there.uid() != 0 {
        fchown(&file, Some(there.uid()), Some(there.gid()))?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};

    use super::*;

    #[test]
    fn a_file_that_is_made_belongs_to_whom_its_folder_belongs_and_one_that_is_there_stays_whose_it_is() {
        let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        // Refused to all but root, who is the one that this is about.
        let _ = chown(folder.path(), Some(12_345), Some(12_345));
        let owner = |path: &Path| path.metadata().map(|of| (of.uid(), of.gid())).unwrap();
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
}
