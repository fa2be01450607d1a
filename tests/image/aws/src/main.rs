//! `aws-eif build FOLDER`: makes `FOLDER/image.eif` of kernel, cmdline, metadata.json, boot and
//! application in that folder; prints the measurements.
//! `aws-eif describe IMAGE`: prints what AWS's reader finds in an image.

use aws_nitro_enclaves_image_format::utils::eif_reader::EifReader;
use aws_nitro_enclaves_image_format::utils::{EifBuilder, get_pcrs};
use sha2::{Digest, Sha384};
use std::error::Error;
use std::fs::{File, read, read_to_string};
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[1..] {
        ["build", folder] => build(Path::new(folder)),
        ["describe", image] => describe(image),
        _ => Err("aws-eif build FOLDER | describe IMAGE".into()),
    }
}

fn build(folder: &Path) -> Result<(), Box<dyn Error>> {
    let metadata = serde_json::from_slice(&read(folder.join("metadata.json"))?)?;
    let cmdline = read_to_string(folder.join("cmdline"))?;
    let kernel = folder.join("kernel");
    let mut builder = EifBuilder::new(&kernel, cmdline, None, Sha384::new(), 0, metadata);
    builder.add_ramdisk(&folder.join("boot"));
    builder.add_ramdisk(&folder.join("application"));
    let pcrs = builder.write_to(&mut File::create(folder.join("image.eif"))?);
    println!("{}", serde_json::to_string_pretty(&pcrs)?);
    Ok(())
}

fn describe(image: &str) -> Result<(), Box<dyn Error>> {
    let mut reader = EifReader::from_eif(image.into())?;
    let pcrs = get_pcrs(
        &mut reader.image_hasher,
        &mut reader.bootstrap_hasher,
        &mut reader.app_hasher,
        &mut reader.cert_hasher,
        Sha384::new(),
        reader.signature_section.is_some(),
    )?;
    println!("{}", serde_json::to_string_pretty(&pcrs)?);
    println!("CRC {}", reader.check_crc());
    println!("{}", serde_json::to_string_pretty(&reader.get_metadata())?);
    Ok(())
}
