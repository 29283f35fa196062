//! Models on a registry: which one an image has, bringing one, pinning.

use bytes::Bytes;
use layer_format::Digest;
use layer_format::api::{MODEL_MEDIA_TYPE, ModelPin, ModelPut};
use layer_format::model::MAX_MODEL_LEN;
use layer_format::reference::ImageReference;
use reqwest::Method;

use super::Registry;
use crate::origin::OriginError;

impl Registry {
    /// The model that launches of an image get, and its digest; `None` if there is none.
    ///
    /// # Errors
    /// [`OriginError`].
    pub async fn get_model_of(&self, image: &ImageReference) -> Result<Option<(Digest, Bytes)>, OriginError> {
        let revision = self.revision(image).await?;
        match self.send(self.request(Method::GET, &image.repository, &format!("model?image={revision}")), || format!("model of {image}")).await {
            Err(OriginError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
            Ok(response) => {
                let bytes = self.body(response, MAX_MODEL_LEN).await?;
                Ok(Some((Digest::of(&bytes), bytes)))
            }
        }
    }

    /// Makes a model the one that launches of an image get; what it names that is not in the image is left out.
    ///
    /// # Errors
    /// [`OriginError::NotFound`] if there is no such image, [`OriginError::Refused`] with `MODEL_UNSUITABLE` if nothing is left.
    pub async fn put_model(&self, image: &ImageReference, model: Bytes) -> Result<ModelPut, OriginError> {
        let revision = self.revision(image).await?;
        let request = self.request(Method::PUT, &image.repository, &format!("model?image={revision}")).header("content-type", MODEL_MEDIA_TYPE);
        let response = self.send(request.body(model), || image.to_string()).await?;
        self.json(response).await
    }

    /// Pins a model to an image or release: the one that launches get now if `model` is `None`. Gives its digest.
    ///
    /// # Errors
    /// [`OriginError::NotFound`] if there is no such image or model, [`OriginError::Refused`] with `TOO_MANY_PINS`.
    pub async fn pin_model(&self, image: &ImageReference, model: Option<Digest>) -> Result<Digest, OriginError> {
        let revision = self.revision(image).await?;
        let body = serde_json::to_vec(&ModelPin { model }).map_err(|error| self.protocol(error.to_string()))?;
        let request = self.request(Method::PUT, &image.repository, &format!("pins/{revision}")).header("content-type", "application/json");
        let what = || model.map_or_else(|| format!("model of {image}"), |model| format!("model {model} of {image}"));
        let response = self.send(request.body(body), what).await?;
        let pinned: ModelPin = self.json(response).await?;
        pinned.model.ok_or_else(|| self.protocol("it does not say which model it pinned".into()))
    }

    /// Takes a pin away.
    ///
    /// # Errors
    /// [`OriginError::NotFound`] if nothing is pinned there.
    pub async fn unpin_model(&self, image: &ImageReference) -> Result<(), OriginError> {
        let revision = self.revision(image).await?;
        self.send(self.request(Method::DELETE, &image.repository, &format!("pins/{revision}")), || format!("pinned model of {image}")).await.map(drop)
    }
}
