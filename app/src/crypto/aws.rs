//! AWS KMS as the keeper.

use std::collections::BTreeMap;

use zeroize::Zeroizing;

use super::keeper::Keeper;
use super::tenants::{Context, Tenants};
use crate::aws::KeyArn;
use crate::error::{Failure, What};
use crate::kms::{Kms, Stock};
use crate::nsm::Place;

/// AWS KMS in the regions of the tenants' keys, and the security module of this enclave.
#[derive(Debug)]
pub(super) struct Aws {
    place: Place,
    regions: BTreeMap<String, Kms>,
}

impl Aws {
    /// For these tenants. Nothing is asked of KMS yet.
    ///
    /// # Errors
    /// Outside an enclave without `plain`, and inside with it.
    pub(super) async fn new(place: Place, plain: bool, tenants: &Tenants) -> Result<Aws, Failure> {
        let stock = Stock::of(&place);
        let mut regions = BTreeMap::new();
        for region in tenants.regions() {
            let kms = Kms::in_region(place.clone(), plain, Some(region.clone())).await?;
            regions.insert(region, kms.with_stock(&stock));
        }
        Ok(Aws { place, regions })
    }

    fn kms(&self, key: &KeyArn) -> Result<&Kms, Failure> {
        let kms = self.regions.get(key.region());
        kms.ok_or_else(|| Failure::usage("the key is of no tenant's region"))
    }
}

impl Keeper for Aws {
    async fn decrypt(
        &self,
        key: &KeyArn,
        ciphertext: Vec<u8>,
        context: &Context,
    ) -> Result<Zeroizing<Vec<u8>>, Failure> {
        self.kms(key)?
            .decrypt(ciphertext, Some(key.as_str()), context)
            .await
    }

    async fn encrypt(
        &self,
        key: &KeyArn,
        plaintext: Zeroizing<Vec<u8>>,
        context: &Context,
    ) -> Result<Vec<u8>, Failure> {
        self.kms(key)?
            .encrypt(&plaintext, key.as_str(), context)
            .await
    }

    async fn attestation_ready(&self) -> bool {
        let place = self.place.clone();
        let attest = tokio::task::spawn_blocking(move || place.attest(None, None, None));
        matches!(attest.await, Ok(Ok(_)))
    }

    /// A random byte costs KMS nothing and shows the whole way: names, TLS, credentials, the document
    /// and the seal. Whoever may not have one is answered as well: then the way is there.
    async fn kms_ready(&self) -> bool {
        for (region, kms) in &self.regions {
            match kms.generate_random(1).await {
                Ok(_) => {}
                Err(failure) if failure.what == What::Permission => {}
                Err(failure) => {
                    tracing::warn!(region, %failure, "KMS is not ready");
                    return false;
                }
            }
        }
        true
    }
}
