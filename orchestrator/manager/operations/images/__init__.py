"""Operations on images, which live on nodes, and on registries."""
