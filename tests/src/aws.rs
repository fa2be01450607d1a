//! The AWS of the tests: KMS behind real names and real TLS, and its clients.

use crate::lab::{Lab, servers_dir};
use crate::machine::Machine;
use crate::process::{Done, Process};
use crate::servers::fill;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the certificate names: the regions there are.
const NAMES: [&str; 7] = [
    "kms.us-east-1.amazonaws.com",
    "kms.us-east-2.amazonaws.com",
    "kms.eu-west-1.amazonaws.com",
    "kms.eu-west-2.amazonaws.com",
    "kms.ap-southeast-1.amazonaws.com",
    "sqs.us-east-1.amazonaws.com",
    "sts.us-east-1.amazonaws.com",
];

/// KMS, SQS and STS, running in the internet.
#[derive(Debug)]
pub struct Aws {
    /// The service itself; its log tells what it answered and refused.
    pub service: Process,
    /// TLS in front of it.
    pub nginx: Process,
    /// The certificate of the CA that signed for its names.
    pub ca: String,
    /// Whom it believes attestation documents: the folder of an authority.
    pub authority: PathBuf,
    python: String,
    scripts: PathBuf,
}

/// Who asks, and for which region. As it comes: an enclave of the image `aa…`, in us-east-1.
#[derive(Debug, Clone)]
pub struct Client<'a> {
    /// Its access key and secret, if it has any.
    pub credentials: Option<(&'a str, &'a str)>,
    /// The region it asks.
    pub region: &'a str,
    /// Its image's PCR0, in hex.
    pub pcr0: String,
    /// Whom its secure module belongs to.
    pub authority: &'a Path,
    /// The certificate of the CA that it believes.
    pub ca: &'a str,
    /// Whether it asks the parent's metadata service for credentials.
    pub has_imds: bool,
}

impl Client<'_> {
    /// The role that a key policy names.
    pub const ENCLAVE: (&'static str, &'static str) = ("AKIATESTENCLAVE00001", "enclave-secret");
    /// The role that administers keys.
    pub const ADMIN: (&'static str, &'static str) = ("AKIATESTADMIN0000001", "admin-secret");
    /// A role that no policy names.
    pub const STRANGER: (&'static str, &'static str) = ("AKIATESTSTRANGER0001", "stranger-secret");

    fn environment(&self) -> Vec<String> {
        let mut set = vec![
            format!("AWS_REGION={}", self.region),
            format!("AWS_DEFAULT_REGION={}", self.region),
            format!("SSL_CERT_FILE={}", self.ca),
            format!("AWS_CA_BUNDLE={}", self.ca),
            format!("AWS_EC2_METADATA_DISABLED={}", !self.has_imds),
            format!("TEST_AUTHORITY={}", self.authority.display()),
            format!("TEST_PCR0={}", self.pcr0),
        ];
        if let Some((id, secret)) = self.credentials {
            set.push(format!("AWS_ACCESS_KEY_ID={id}"));
            set.push(format!("AWS_SECRET_ACCESS_KEY={secret}"));
        }
        set
    }

    /// Starts a program with this client's environment, and more of it.
    pub fn spawn(&self, machine: &Machine, more: &[&str], command: &[&str]) -> Process {
        let set = self.environment();
        let set: Vec<&str> = set.iter().map(String::as_str).collect();
        machine.spawn("env", &[&set[..], more, command].concat())
    }

    /// Runs a program with this client's environment.
    #[track_caller]
    pub fn run(&self, machine: &Machine, program: &str, arguments: &[&str]) -> Done {
        let set = self.environment();
        let set: Vec<&str> = set.iter().map(String::as_str).collect();
        machine.run("env", &[&set[..], &[program], arguments].concat())
    }
}

impl Aws {
    /// A client as it comes.
    pub fn client(&self) -> Client<'_> {
        Client {
            credentials: Some(Client::ENCLAVE),
            region: "us-east-1",
            pcr0: "aa".repeat(48),
            authority: &self.authority,
            ca: &self.ca,
            has_imds: false,
        }
    }

    /// boto3, which is not ours; prints JSON.
    #[track_caller]
    pub fn boto3(
        &self,
        client: &Client<'_>,
        machine: &Machine,
        arguments: &[&str],
    ) -> serde_json::Value {
        let script = self.scripts.join("control.py");
        let arguments = [&["-B", script.to_str().unwrap()], arguments].concat();
        let said = client.run(machine, &self.python, &arguments).ok();
        serde_json::from_str(&said).unwrap()
    }
}

impl Lab {
    /// Makes an authority for secure modules in a folder.
    pub fn authority(&self, dir: &Path) {
        let make = self.binary("make-authority");
        self.internet.run(&make, &[dir.to_str().unwrap()]).ok();
    }

    /// Starts the parent's metadata service, which gives credentials of the role that key policies
    /// name.
    pub fn imds(&self, aws: &Aws) -> Process {
        let address = "169.254.169.254";
        self.parent
            .run(
                "ip",
                &["addr", "add", &format!("{address}/32"), "dev", "lo"],
            )
            .ok();
        let script = aws.scripts.join("imds.py");
        let (id, secret) = Client::ENCLAVE;
        let arguments = ["-B", script.to_str().unwrap(), address, id, secret];
        let process = self.parent.spawn(&aws.python, &arguments);
        self.parent.accepting(process, "169.254.169.254:80").process
    }

    /// Starts the AWS of the tests in the internet; [`Lab::unbound`] knows its names.
    ///
    /// # Panics
    /// When its Python environment cannot be made.
    pub fn aws(&self) -> Aws {
        let scripts = servers_dir().join("aws");
        let python = python(&scripts);
        let dir = self.internet.dir().join("aws");
        let authority = dir.join("authority");
        fs::create_dir_all(&dir).unwrap();
        self.authority(&authority);
        let folder = dir.to_str().unwrap();
        let make = servers_dir().join("make-pki");
        self.internet
            .run(make.to_str().unwrap(), &[&[folder], &NAMES[..]].concat())
            .ok();
        let root = authority.join("bundle-0.der");
        let server = scripts.join("server.py");
        let [server, root] = [&server, &root].map(|path| path.to_str().unwrap());
        // Without leaving compiled scripts beside the scripts.
        let service = self.internet.spawn(&python, &["-B", server, "5000", root]);
        let service = self.internet.accepting(service, "127.0.0.1:5000").process;
        let conf = fill(self, "aws/nginx.conf", &dir);
        let nginx = self.internet.spawn("nginx", &["-e", "stderr", "-c", &conf]);
        Aws {
            service,
            nginx: self.internet.accepting(nginx, "192.0.2.3:443").process,
            ca: dir.join("ca.pem").to_str().unwrap().to_owned(),
            authority,
            python,
            scripts,
        }
    }
}

/// The interpreter of the environment that the scripts need.
fn python(scripts: &Path) -> String {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
        PathBuf::from,
    );
    let made = Command::new(scripts.join("make-venv"))
        .arg(target)
        .output()
        .expect("cannot run make-venv");
    let complaint = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "make-venv: {complaint}");
    let venv = String::from_utf8(made.stdout).unwrap();
    format!("{}/bin/python", venv.trim_end())
}
