//! An image of an enclave, and its boot without a machine: as process 1 of namespaces of its own.

use crate::lab::{Lab, servers_dir};
use crate::process::Process;
use std::fs;
use std::path::{Path, PathBuf};

/// The files that a kernel would unpack.
#[derive(Debug)]
pub struct Image {
    dir: PathBuf,
}

impl Image {
    /// An image with enclave-netd as its first process, and no root for the program.
    ///
    /// # Panics
    /// When the daemon is not built.
    pub fn new(lab: &Lab, name: &str) -> Image {
        let dir = lab.dir().join(name);
        for folder in ["", "proc", "sys", "dev", "run", "tmp"] {
            fs::create_dir_all(dir.join(folder)).unwrap();
        }
        fs::copy(lab.binary("enclave-netd"), dir.join("init")).unwrap();
        Image { dir }
    }

    /// Where its files lie.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes a file, with the folders above it.
    pub fn write(&self, path: &str, text: &str) -> &Image {
        let path = self.dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    /// Makes the program a line of shell.
    pub fn runs(&self, line: &str) -> &Image {
        let command = serde_json::to_string(&["/bin/sh", "-c", line]).unwrap();
        let config = format!("parent = \"unix:/link/host.sock\"\n[program]\ncommand = {command}\n");
        self.write("enclave.toml", &config)
    }

    /// Boots it in the lab's enclave. The process is the one outside that waits for process 1, and
    /// that ends as it does. It cannot set the clock, which is everybody's.
    pub fn boot(&self, lab: &Lab) -> Process {
        let script = servers_dir().join("boot-image");
        let paths = [&script, &self.dir, &lab.dir().join("link")];
        let [script, image, link] = paths.map(|path| path.to_str().unwrap());
        let arguments = [
            "--bounding-set=-sys_time",
            "unshare",
            "--pid",
            "--mount",
            "--fork",
            "--kill-child",
            script,
            image,
            link,
        ];
        lab.enclave.spawn("setpriv", &arguments)
    }
}
